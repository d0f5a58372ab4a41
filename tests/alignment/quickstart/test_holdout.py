import pytest

from alignment.quickstart.records import preference_records, sft_records, suite_items
from alignment.quickstart.world import is_held_out, normalised

SHARDS = 3
SEEDS = (0, 1, 7)


def said(messages):
    return [normalised(message["content"]) for message in messages if message["role"] == "user"]


def trained_prompts(seed):
    """Every user turn of every training row, wherever in a conversation it stands."""
    rows = [record["messages"] for record in sft_records(seed)]
    rows += [pair["prompt"] for shard in range(SHARDS) for pair in preference_records(shard, seed)]
    return {prompt for messages in rows for prompt in said(messages)}


def asked_prompts(seed):
    gsm8k = suite_items("gsm8k", seed)
    return {
        normalised(prompt)
        for prompt in (
            *(item["question"] for item in gsm8k),
            *(f"Question: {item['question']}\nAnswer:" for item in gsm8k),
            *(item["prompt"] for item in suite_items("ifeval", seed)),
            *(turn for item in suite_items("mt_bench", seed) for turn in item["turns"]),
        )
    }


@pytest.mark.parametrize("seed", SEEDS)
def test_no_question_of_any_suite_was_a_user_turn_in_training(seed):
    assert not trained_prompts(seed) & asked_prompts(seed)


def test_questions_of_one_seed_were_not_trained_on_with_another():
    assert not trained_prompts(0) & asked_prompts(1)


def test_case_and_spacing_do_not_move_a_prompt_to_the_other_side():
    for number in range(50):
        prompt = f"Write line {number}."
        assert is_held_out(prompt) == is_held_out(f"  WRITE \n line {number}. ")


def test_the_suites_keep_about_one_prompt_in_eight():
    share = sum(is_held_out(f"prompt {number}") for number in range(4000)) / 4000
    assert 0.1 < share < 0.15
