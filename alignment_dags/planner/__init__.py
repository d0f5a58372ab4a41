"""What a recipe will need and cost, before anything runs."""
