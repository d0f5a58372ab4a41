"""The library of alignment-dags: recipes, artifacts, preferences, log-probabilities, training.

Knows nothing of Dagster and nothing of MLflow, so that every stage also runs from a plain shell.
"""

import logging

# PEFT imports bitsandbytes wherever it is installed, which then says in every process which faster kernel it lacks
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
