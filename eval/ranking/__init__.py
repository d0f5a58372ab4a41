"""Sampled answers, scored and put into pairs."""
