"""What every node of the graph is built with: the node, its Dagster asset, what it may read, what it shows."""
