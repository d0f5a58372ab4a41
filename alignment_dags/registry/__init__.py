"""The registry of models: lineage from a version back to its rows, promotions, registrations and their reports."""
