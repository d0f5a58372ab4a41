"""Answers of a checkpoint to the items of a suite, and the files that hold them."""
