"""The gate: comparisons, requirements on them, and the verdict, which can be computed again from stored samples."""
