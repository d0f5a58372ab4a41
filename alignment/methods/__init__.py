"""Preference methods: what each asks of its data, and its loss as a pure function of log-probabilities."""
