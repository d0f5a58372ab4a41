"""The stages that measure: answers, scores, the report, divergence, and the check before a registration."""
