"""The nodes of a recipe's graph, one file a stage, each the same three moves: request, run, report."""
