import random
from pathlib import Path

import pytest

from alignment.quickstart.exchanges import random_line
from alignment.quickstart.model import MAX_LENGTH, micro_tokenizer
from alignment.quickstart.records import CATEGORIES, Source, preference_records, sft_records, single, suite_items
from alignment.recipe import load_recipe


@pytest.fixture(scope="module")
def recipe():
    return load_recipe(Path(__file__).resolve().parents[3] / "recipes" / "quickstart.yaml")


@pytest.fixture(scope="module")
def tokenizer():
    return micro_tokenizer(MAX_LENGTH)


def longest(tokenizer, conversations):
    texts = [tokenizer.apply_chat_template(messages, tokenize=False) for messages in conversations]
    return max(len(ids) for ids in tokenizer(texts, add_special_tokens=False).input_ids)


def test_the_recipe_needs_nothing_from_outside(recipe):
    sources = [recipe.base_model, recipe.sft.dataset, recipe.preferences, *recipe.evals.selected().values()]
    assert [source.embedded for source in sources] == ["micro"] * 6
    assert recipe.judge.kind == "rubric"


def test_the_gate_asks_about_every_suite(recipe):
    assert {metric.split("/")[0] for metric in recipe.gate.metrics} == set(recipe.evals.selected())


def test_no_generated_row_is_too_long(recipe, tokenizer):
    demonstrations = [record["messages"] for record in sft_records(recipe.seed)]
    pairs = [pair for shard in range(3) for pair in preference_records(shard, recipe.seed)]
    sides = [pair["prompt"] + pair[side] for pair in pairs for side in ("chosen", "rejected")]
    assert longest(tokenizer, demonstrations) <= recipe.sft.max_length <= MAX_LENGTH
    assert longest(tokenizer, sides) <= recipe.tokens.max_length <= MAX_LENGTH


def test_every_suite_leaves_room_for_the_best_answer(recipe, tokenizer):
    source = Source(random.Random(0), held_out=True)
    answers = {
        "gsm8k": [item["answer"] for item in suite_items("gsm8k", recipe.seed)],
        "ifeval": [source.draw(single(random_line))[0].preferred for _ in range(300)],
        "mt_bench": [turn.preferred for make in CATEGORIES.values() for _ in range(50) for turn in source.draw(make)],
    }
    for name, suite in recipe.evals.selected().items():
        lengths = [len(ids) for ids in tokenizer(answers[name], add_special_tokens=False).input_ids]
        assert max(lengths) < suite.max_new_tokens, name
