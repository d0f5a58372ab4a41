"""The embedded default: a micro Llama and the text that trains, tunes and measures it, all made from a seed.

It shows the pipeline, not quality: nothing here says anything about a model that people would use. Recipes reach it as
`embedded: micro`, through the entry point that `alignment/data/embedded.py` looks up.
"""

from alignment.quickstart.model import build_micro_model as build_model
from alignment.quickstart.records import preference_records, prompt_records, sft_records, suite_items

__all__ = ["build_model", "preference_records", "prompt_records", "sft_records", "suite_items"]
