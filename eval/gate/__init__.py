"""The gate: comparisons, requirements on them, and the verdict, recomputable from stored samples."""
