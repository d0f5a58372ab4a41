"""Watching a recipe's preference source: what is new, changed or gone, and the runs that follow from it."""
