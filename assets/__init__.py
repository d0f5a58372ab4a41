"""The nodes of a recipe's graph, one file for each stage, all with the same three steps: request, run, report."""
