"""The library of alignment-dags: recipes, artifacts, preferences, log-probabilities, training.

Knows nothing of Dagster and nothing of MLflow, so that every stage also runs from a plain shell.
"""
