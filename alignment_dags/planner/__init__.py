"""What a recipe will need and cost, before a run."""
