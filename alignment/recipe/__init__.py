"""Recipes: what a person writes, typed."""

from alignment.recipe.evaluation import Evals, Gate, Gsm8k, IfEval, Judge, MtBench, Requirement, Suite
from alignment.recipe.load import load_recipe, parse_recipe
from alignment.recipe.recipe import Pools, Recipe, Registry
from alignment.recipe.schedule import Alerts, Schedule
from alignment.recipe.sources import DataSource, ModelSource, PreferenceSource
from alignment.recipe.training import Dpo, Lora, Optimisation, Reference, Sft, SftTraining, TokenPolicy

__all__ = [
    "Alerts",
    "DataSource",
    "Dpo",
    "Evals",
    "Gate",
    "Gsm8k",
    "IfEval",
    "Judge",
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
    "Suite",
    "TokenPolicy",
    "load_recipe",
    "parse_recipe",
]
