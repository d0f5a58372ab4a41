"""Texts from a checkpoint or an endpoint."""
