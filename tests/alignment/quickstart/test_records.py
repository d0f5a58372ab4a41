from collections import Counter

import pytest

from alignment.digest import json_digest
from alignment.quickstart.exchanges import INSTRUCTIONS
from alignment.quickstart.records import preference_records, sft_records, suite_items

SHARDS = 3


def all_pairs(seed):
    return [pair for shard in range(SHARDS) for pair in preference_records(shard, seed)]


@pytest.mark.parametrize(
    "make",
    [
        sft_records,
        all_pairs,
        lambda seed: suite_items("gsm8k", seed),
        lambda seed: suite_items("ifeval", seed),
        lambda seed: suite_items("mt_bench", seed),
    ],
)
def test_a_seed_always_gives_the_same_text_and_another_seed_gives_other_text(make):
    assert make(3) == make(3)
    assert make(3) != make(4)


def test_sizes_are_as_documented():
    assert len(sft_records(0)) == 18_000
    assert [len(preference_records(shard, 0)) for shard in range(SHARDS)] == [700, 700, 700]
    assert len(suite_items("gsm8k", 0)) >= 200
    assert len(suite_items("ifeval", 0)) >= 200
    assert len(suite_items("mt_bench", 0)) >= 80


def test_a_shard_is_the_same_however_many_there_are_and_all_differ():
    shards = [json_digest(preference_records(shard, 0)) for shard in range(5)]
    assert len(set(shards)) == len(shards)
    assert json_digest(preference_records(1, 0)) == shards[1]


def test_a_negative_shard_is_refused():
    with pytest.raises(ValueError, match="numbered from 0"):
        preference_records(-1, 0)


def test_demonstrations_are_whole_conversations():
    for record in sft_records(0):
        roles = [message["role"] for message in record["messages"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert all(message["content"].strip() for message in record["messages"])


def test_pairs_are_conversational_and_their_sides_differ():
    for pair in all_pairs(0):
        assert pair["prompt"][-1]["role"] == "user"
        (chosen,), (rejected,) = pair["chosen"], pair["rejected"]
        assert chosen["role"] == rejected["role"] == "assistant"
        assert chosen["content"].strip() and rejected["content"].strip()
        assert chosen["content"] != rejected["content"]


def test_no_prompt_of_a_shard_stands_twice():
    for shard in range(SHARDS):
        prompts = Counter(json_digest(pair["prompt"]) for pair in preference_records(shard, 0))
        assert max(prompts.values()) == 1


def test_every_shard_compares_every_kind_of_instruction():
    for shard in range(SHARDS):
        prompts = [pair["prompt"][-1]["content"] for pair in preference_records(shard, 0)]
        for instruction in INSTRUCTIONS:
            wordings = [request.split("{}")[0].strip() for request in instruction.requests]
            assert any(wording in prompt for prompt in prompts for wording in wordings), instruction.id


def test_prompts_of_a_suite_are_distinct():
    for suite, field in (("gsm8k", "question"), ("ifeval", "prompt")):
        items = suite_items(suite, 0)
        assert len({item[field] for item in items}) == len(items)
    assert len({tuple(item["turns"]) for item in suite_items("mt_bench", 0)}) == len(suite_items("mt_bench", 0))
