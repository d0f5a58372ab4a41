"""Judges of open answers, and the questions they are asked."""
