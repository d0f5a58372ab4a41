"""`align lineage`: from a model version back to its rows, and from a row on to the models that saw it."""
