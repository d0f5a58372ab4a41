import json
import random
import re

import pytest

from alignment.quickstart.exchanges import INSTRUCTIONS, follow, random_line, random_plain_line, word
from alignment.quickstart.records import CATEGORIES, suite_items
from alignment.quickstart.world import random_scene

STRICT_MATCH = re.compile(r"#### (\-?[0-9\.\,]+)")
"""The filter of lm-eval's gsm8k task."""


def follows(instruction_id, kwargs, reply):
    """What IFEval's own checker says of a reply."""
    from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT

    checker = INSTRUCTION_DICT[instruction_id](instruction_id)
    checker.build_description(**kwargs)
    return bool(checker.check_following(reply))


def passes(check, reply):
    """An own reading of a rubric check."""
    kind, value = check["kind"], check["value"]
    if kind == "regex":
        return re.search(value, reply) is not None
    if kind == "max_words":
        return len(reply.split()) <= value
    return {"contains": value in reply, "starts_with": reply.startswith(value), "ends_with": reply.endswith(value)}[
        kind
    ]


def test_the_maths_answer_is_the_sum_its_question_states():
    for item in suite_items("gsm8k", 0):
        first, second = (int(number) for number in re.findall(r"\d+", item["question"]))
        expected = first - second if "loses" in item["question"] else first + second
        assert STRICT_MATCH.findall(item["answer"]) == [str(expected)]
        assert expected > 0


def test_ifeval_items_have_the_published_fields():
    for number, item in enumerate(suite_items("ifeval", 0)):
        assert set(item) == {"key", "prompt", "instruction_id_list", "kwargs"}
        assert item["key"] == number
        assert 1 <= len(item["instruction_id_list"]) == len(item["kwargs"]) <= 2
        json.dumps(item)


def test_ifeval_asks_every_instruction_alone_and_in_pairs():
    lists = [item["instruction_id_list"] for item in suite_items("ifeval", 0)]
    assert {ids[0] for ids in lists if len(ids) == 1} == {instruction.id for instruction in INSTRUCTIONS}
    assert sum(len(ids) == 2 for ids in lists) >= 10


def test_a_preferred_reply_follows_by_ifevals_own_checker_and_the_other_one_does_not():
    rng = random.Random(5)
    for _ in range(300):
        exchange = random_line(rng)
        for worded in exchange.instructions:
            assert follows(worded.instruction.id, worded.kwargs, exchange.preferred), exchange
            assert not follows(worded.instruction.id, worded.kwargs, exchange.other), exchange


@pytest.mark.parametrize("instruction", INSTRUCTIONS, ids=lambda instruction: instruction.id)
def test_every_wording_and_detail_of_an_instruction_can_be_followed(instruction):
    rng = random.Random(1)
    for detail in instruction.details:
        for _ in range(10):
            scene, worded = random_scene(rng), word(instruction, rng)
            assert follows(instruction.id, worded.kwargs, follow(scene, (worded,)))
        assert all(detail in request.format(detail) for request in instruction.requests)


def test_a_plain_prompt_is_best_answered_by_the_plain_line():
    rng = random.Random(2)
    for _ in range(50):
        exchange = random_plain_line(rng)
        assert not exchange.instructions
        assert exchange.preferred != exchange.other


@pytest.mark.parametrize("category", CATEGORIES)
def test_a_perfect_conversation_passes_its_whole_rubric_and_the_other_reply_does_not(category):
    rng = random.Random(3)
    for _ in range(100):
        for turn in CATEGORIES[category](rng):
            assert all(passes(check, turn.preferred) for check in turn.checks), turn
            if category != "roleplay" or "capital" in turn.prompt:
                assert not all(passes(check, turn.other) for check in turn.checks), turn


def test_mt_bench_questions_have_two_turns_with_a_rubric_each():
    items = suite_items("mt_bench", 0)
    assert [item["question_id"] for item in items] == list(range(1, len(items) + 1))
    assert {item["category"] for item in items} == set(CATEGORIES)
    for item in items:
        assert len(item["turns"]) == len(item["rubric"]) == 2
        assert all(item["rubric"])
        kinds = {check["kind"] for checks in item["rubric"] for check in checks}
        assert kinds <= {"equals", "contains", "regex", "starts_with", "ends_with", "max_words"}


def test_an_unknown_suite_is_refused():
    with pytest.raises(KeyError):
        suite_items("hellaswag", 0)
