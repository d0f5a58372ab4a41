"""Recipes: what a person writes, typed."""

from alignment.recipe.data import DataSource, ModelSource, PreferenceSource
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
from alignment.recipe.load import load_recipe, parse_recipe
from alignment.recipe.recipe import Pools, Recipe, Registry
from alignment.recipe.schedule import Alerts, Schedule
from alignment.recipe.training import Dpo, Lora, Optimisation, Reference, Sft, SftTraining, Stop, TokenPolicy

__all__ = [
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
    "LmEvalTask",
    "Lora",
    "ModelSource",
    "MtBench",
    "Optimisation",
    "Pools",
    "PreferenceSource",
    "Recipe",
    "Reference",
    "Registry",
    "Requirement",
    "Schedule",
    "Sft",
    "SftTraining",
    "Stop",
    "Suite",
    "TokenPolicy",
    "XsTest",
    "load_recipe",
    "parse_recipe",
]
