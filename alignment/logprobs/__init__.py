"""Reference log-probabilities: scored once per sequence and reference, kept for every later run."""
