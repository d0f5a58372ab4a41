"""Best of n: suites read the answer that a reward model chose, and the cost is that of all."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from alignment.generation.generator import Answer, Prompt, Sampling
from alignment.models.checkpoint import load_tokenizer, save_checkpoint
from alignment.models.reward import load_reward_model
from alignment.recipe import TokenPolicy
from alignment.recipe.evaluation import BestOf
from alignment.stages import execute
from alignment.store import Artifact, Store
from eval.answers.asking import BestOfGenerator
from eval.answers.files import read_responses
from eval.ranking.scorers import Reading, RewardScorer, Scored
from eval.stages.responses import STAGE, ResponsesRequest
from eval.summaries import ResponsesSummary
from tests.assets.test_policy_divergence import nodes, recipe
from tests.eval.stages.test_responses import specs

GIVEN = {"prompts": {"embedded": "micro"}, "score": {"kind": "rubric"}}


class Numbered:
    """Answers with the seed that it is given."""

    is_chat = True

    def __init__(self) -> None:
        self.samplings: list[Sampling] = []

    def answer(
        self, prompts: Sequence[Prompt], limit: int, until: Sequence[str], samplings: Sequence[Sampling]
    ) -> list[Answer]:
        self.samplings += samplings
        return [
            Answer("", failed="no room") if prompt == "long" else Answer(one.seed, tokens=2)
            for prompt, one in zip(prompts, samplings, strict=True)
        ]


def ranked(answers: Sequence[Scored]) -> list[float | str]:
    """The higher an answer's last digit the better, but 2 cannot be read."""
    return ["unreadable" if answer.text.endswith("2") else float(answer.text[-1]) % 3 for answer in answers]


def test_the_answer_that_scores_highest_is_given_and_the_first_of_equal_ones() -> None:
    asked = Numbered()
    best = BestOfGenerator(asked, BestOf(n=5, temperature=0.7), ranked)  # type: ignore[arg-type]
    given = best.answer(["p", "long"], 9, (), [Sampling(0.0, 1.0, "a"), Sampling(0.0, 1.0, "b")])
    assert given[0].text == "a/best/1", "scores 0, 1, none, 0, 1"
    assert given[1].failed == "no room"
    assert (best.tokens, best.unscored) == (10, 1)
    assert {(one.temperature, one.top_p) for one in asked.samplings} == {(0.7, 1.0)}
    assert len({one.seed for one in asked.samplings}) == 10, "every answer has a seed of its own"


def test_without_any_score_the_first_answer_is_given() -> None:
    best = BestOfGenerator(Numbered(), BestOf(n=2), lambda answers: ["no"] * len(answers))  # type: ignore[arg-type]
    assert best.answer(["p"], 9, (), [Sampling(0.0, 1.0, "a")])[0].text == "a/best/0" and best.unscored == 2


@pytest.fixture
def rewarding(micro_folder: Path, tmp_path: Path, commit_checkpoint: Callable[..., Artifact]) -> Artifact:
    torch.manual_seed(5)
    folder = tmp_path / "reward"
    save_checkpoint(load_reward_model(micro_folder, "float32", fresh=True), load_tokenizer(micro_folder), folder)
    return commit_checkpoint("reward", folder)


def test_suites_read_what_a_reward_model_chose_and_log_likelihoods_stay(
    store: Store, micro_folder: Path, commit_checkpoint: Callable[..., Artifact], rewarding: Artifact
) -> None:
    given: dict[str, Any] = {"checkpoint": commit_checkpoint("micro", micro_folder), "suites": specs(limit=3)}
    given |= {"seed": 1, "precision": "float32", "batch_tokens": 4096}
    reading = Reading(tokens=TokenPolicy(max_length=256), precision="float32", batch_tokens=4096)
    chosen = {"reward_model": rewarding, "reading": reading}
    plain = execute(STAGE, ResponsesRequest(**given), store)
    made = {n: execute(STAGE, ResponsesRequest(**given, **chosen, best_of=BestOf(n=n)), store) for n in (2, 4)}
    assert len({plain.key, made[2].key, made[4].key}) == 3, "what is measured so has keys of its own"
    told = ResponsesSummary.of(made[4])
    assert told.best_of == 4 and told.tokens and ResponsesSummary.of(plain).best_of is None
    assert told.tokens > (ResponsesSummary.of(made[2]).tokens or 0), "the tokens of all answers are counted"
    settings = json.loads((store.fetch(made[4].artifact) / "gsm8k" / "generation.json").read_text())
    assert settings["best_of"] == {"n": 4, "temperature": 1.0, "top_p": 1.0}

    def mean(n: int) -> float:
        folder = store.fetch(made[n].artifact) / "ifeval"
        items = [json.loads(line)["item"] for line in (folder / "items.jsonl").read_text().splitlines()]
        texts = [one.turns[0] for one in read_responses(folder / "responses.jsonl")]
        scorer = RewardScorer(store.fetch(rewarding), reading.tokens, "float32", 4096)
        prompts = [({"role": "user", "content": item["prompt"]},) for item in items]
        scores = scorer([Scored("a", "p", prompt, {}, text) for prompt, text in zip(prompts, texts, strict=True)])
        return sum(score for score in scores if isinstance(score, float)) / len(scores)

    assert mean(4) >= mean(2), "the first two of four answers have the seeds of two"


def test_the_graph_has_a_reward_model_before_all_answers() -> None:
    suites = {"ifeval": {"embedded": "micro"}, "best_of": {"n": 4}}
    found = nodes(evals=suites, reward_model={})
    assert [name for name, node in found.items() if "reward_model" in node.needs] == [
        "sft_responses",
        "policy_responses",
        "champion_responses",
    ]
    assert found["reward_model"].needs == ("preference_manifest", "sft_checkpoint")
    assert "reward_model" not in nodes(evals={"ifeval": {"embedded": "micro"}}, reward_model={})
    scored = nodes(evals=suites, reward_model={}, rounds=GIVEN | {"count": 2, "score": {"kind": "reward_model"}})
    assert list(scored).count("reward_model") == 1
    with pytest.raises(Exception, match=r"evals\.best_of chooses by a reward model: give the section reward_model"):
        recipe(evals=suites)
