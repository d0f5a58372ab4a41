"""Bringing a recipe up to date: which phases and shards are behind, the Dagster runs that make them, their workers."""
