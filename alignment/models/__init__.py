"""Checkpoints on disk: reading them, naming their weights, pinning where they came from."""
