"""The parts of every node of the graph: the node, its Dagster asset, what it may read, what it shows."""
