"""The small recipe of the whole runs: the campaigns damage what it reads and what it made."""

from tests.pipeline.conftest import hold, small_inputs, small_recipe

__all__ = ["hold", "small_inputs", "small_recipe"]
