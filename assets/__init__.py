"""The nodes of a recipe's graph, by subject, all with the same three steps: request, run, report."""
