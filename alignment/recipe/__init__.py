"""Recipes: what a person writes, typed."""

from alignment.recipe.data import (
    DEFAULT_READING,
    DataSource,
    ModelSource,
    NamedSource,
    PreferencePart,
    PreferenceSource,
    Reading,
)
from alignment.recipe.evaluation import (
    AlpacaEval,
    ArenaHard,
    Evals,
    Gate,
    Generate,
    Gsm8k,
    Harmless,
    IfEval,
    Judge,
    JudgePrice,
    LmEvalTask,
    MtBench,
    Requirement,
    Suite,
    XsTest,
)
from alignment.recipe.forward import Lora, Reference, TokenPolicy
from alignment.recipe.load import load_recipe, parse_recipe
from alignment.recipe.places import Pools, Publish, Registry
from alignment.recipe.recipe import Recipe
from alignment.recipe.schedule import Alerts, Schedule
from alignment.recipe.several import Link, MergePart, Select, Sweep
from alignment.recipe.training import Dpo, Optimisation, Optimise, Sft, SftTraining, Stop, as_fast_as_sft

__all__ = [
    "DEFAULT_READING",
    "Alerts",
    "AlpacaEval",
    "ArenaHard",
    "DataSource",
    "Dpo",
    "Evals",
    "Gate",
    "Generate",
    "Gsm8k",
    "Harmless",
    "IfEval",
    "Judge",
    "JudgePrice",
    "Link",
    "LmEvalTask",
    "Lora",
    "MergePart",
    "ModelSource",
    "MtBench",
    "NamedSource",
    "Optimisation",
    "Optimise",
    "Pools",
    "PreferencePart",
    "PreferenceSource",
    "Publish",
    "Reading",
    "Recipe",
    "Reference",
    "Registry",
    "Requirement",
    "Schedule",
    "Select",
    "Sft",
    "SftTraining",
    "Stop",
    "Suite",
    "Sweep",
    "TokenPolicy",
    "XsTest",
    "as_fast_as_sft",
    "load_recipe",
    "parse_recipe",
]
