"""Texts from a checkpoint or an endpoint: what evaluation asks, and later rounds."""
