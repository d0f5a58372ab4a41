"""Scoring, answering and sampling by several workers: the values of one, each made once, whoever is lost meanwhile."""

import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import dagster as dg
import pyarrow.parquet as pq
import pytest

from alignment.data.files import pin_file
from alignment.data.sources import PromptSource
from alignment.errors import BadInput
from alignment.models.packing import evenly
from alignment.models.pin import pin_model
from alignment.recipe import ModelSource, TokenPolicy
from alignment.stages import Stage, execute
from alignment.stages.base_model import STAGE as BASE_MODEL
from alignment.stages.base_model import BaseModelRequest
from alignment.stages.candidates import STAGE as CANDIDATES
from alignment.stages.candidates import CandidatesRequest
from alignment.stages.preference_shard import STAGE as SHARD
from alignment.stages.preference_shard import ShardRequest
from alignment.stages.reference_logprobs import STAGE as REFERENCE
from alignment.stages.reference_logprobs import ReferenceRequest
from alignment.store import Artifact, Commit, Store
from eval.stages.responses import STAGE as RESPONSES
from eval.stages.responses import ResponsesRequest
from eval.suites import SuiteSpec
from resources.launchers import Launch, launcher_for
from resources.pools import Pool
from tests.loopback import free_port

WORDS = ("the red fox", "a barn", "sleeps", "under", "seven hens", "and", "counts", "slowly")


class Laboratory:
    """A store with a model, and launches over workers whose doings are written down."""

    def __init__(self, folder: Path, model: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.patch = folder, patch
        self.store = Store(str(folder / "store"), folder / "cache")
        pin = pin_model(ModelSource(path=str(model)))
        self.model = execute(BASE_MODEL, BaseModelRequest(pin=pin, seed=0), self.store).artifact
        self.log = folder / "log"

    def shard(self, rows: int) -> Artifact:
        draw = Random(5)

        def text() -> str:
            return " ".join(draw.choice(WORDS) for _ in range(draw.randint(1, 12)))

        lines = [json.dumps({"prompt": f"{n}: {text()}", "chosen": text(), "rejected": text()}) for n in range(rows)]
        path = self.folder / "pairs.jsonl"
        path.write_text("\n".join(lines), encoding="utf-8")
        return execute(SHARD, ShardRequest(file=pin_file(str(path))), self.store).artifact

    def by(
        self,
        workers: int,
        stage: Stage[Any],
        request: Any,
        killed: int | str | None = None,
        *,
        watched: bool = True,
        **more: Any,
    ) -> Commit:
        """What workers of a pool (`more`) commit; `killed` is the one that dies with its first thing kept."""
        self.patch.setenv("WORKERS_LOG", str(self.log))
        if watched:
            self.patch.setenv("PYTHONPATH", str(Path(__file__).with_name("watched_workers")), prepend=os.pathsep)
        if killed is not None:
            self.patch.setenv("KILL_WORKER", str(killed))
        pool = Pool.model_validate({"slots": 1, "launcher": "torchrun", "processes": workers, **more})
        made: list[Commit] = []

        @dg.asset
        def asset(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
            made.append(launcher_for(pool).run(Launch(stage, request, self.store, pool, context, "there")))
            return dg.MaterializeResult()

        with dg.instance_for_test() as instance:
            assert dg.materialize([asset], instance=instance).success
        return made[0]

    def noted(self, what: str) -> list[tuple[int, str]]:
        """(rank, name) of what workers did."""
        lines = [line.split() for line in self.log.read_text().splitlines()]
        return [(int(rank), name) for kind, rank, name in lines if kind == what]

    def kept_once(self) -> None:
        """Nothing was made twice."""
        again = [name for name, times in Counter(name for _, name in self.noted("kept")).items() if times > 1]
        assert not again


@pytest.fixture
def laboratories(tmp_path: Path, micro_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Laboratory]:
    """A laboratory by its name, each with a store of its own."""

    def build(name: str) -> Laboratory:
        (tmp_path / name).mkdir()
        return Laboratory(tmp_path / name, micro_folder, monkeypatch)

    return build


def scoring(lab: Laboratory) -> ReferenceRequest:
    return ReferenceRequest(
        checkpoint=lab.model,
        shard=lab.shard(40),
        tokens=TokenPolicy(max_length=128),
        precision="float32",
        batch_tokens=400,
    )


@pytest.mark.parametrize(("workers", "killed"), [(4, None), (2, 1)])
def test_several_workers_give_the_log_probs_of_one_and_none_is_scored_twice(
    laboratories: Callable[[str], Laboratory], workers: int, killed: int | None
) -> None:
    """Whoever is lost: the others' values stay, and its share is dealt to all."""
    lab, one = laboratories("several"), laboratories("one")
    commit, single = lab.by(workers, REFERENCE, scoring(lab), killed), execute(REFERENCE, scoring(one), one.store)
    found, expected = (
        pq.read_table(made.store.fetch(of.artifact) / "logprobs.parquet").to_pylist()
        for made, of in ((lab, commit), (one, single))
    )
    assert found == expected, "bit for bit"
    assert commit.digest == single.digest
    lab.kept_once()
    kept = Counter(rank for rank, _ in lab.noted("kept"))
    assert set(kept) == set(range(workers))
    if killed is not None:
        assert commit.summary["cache_hits"] >= kept[killed] > 0
        return
    assert commit.summary["scored"] == sum(kept.values()) == 80
    assert Counter(rank for rank, _ in lab.noted("loaded")) == dict.fromkeys(range(workers), 1)
    shares = commit.summary["forwarded_per_rank"]
    assert sum(shares) == commit.summary["forwarded_tokens"] == single.summary["forwarded_tokens"]
    assert min(shares) > 0.9 * max(shares)


def test_a_lost_node_leaves_its_share_to_the_other(laboratories: Callable[[str], Laboratory]) -> None:
    """torchrun on two nodes: the second one dies with its torchrun, and no node comes in its place."""
    lab, one = laboratories("several"), laboratories("one")
    second = {"hosts": ["second"], "shell": ["sh", "-c", 'eval "$0"'], "address": "127.0.0.1", "port": free_port()}
    commit = lab.by(2, REFERENCE, scoring(lab), "node", nodes=2, torchrun=second)
    single = execute(REFERENCE, scoring(one), one.store)
    found, expected = (
        pq.read_table(made.store.fetch(of.artifact) / "logprobs.parquet").to_pylist()
        for made, of in ((lab, commit), (one, single))
    )
    assert found == expected, "bit for bit"
    lab.kept_once()
    assert commit.summary["cache_hits"] > 0 and commit.environment["ranks"] == "1"


@pytest.mark.parametrize("killed", [None, 1])
def test_workers_answer_as_one_and_a_lost_one_costs_no_batch_that_was_made(
    laboratories: Callable[[str], Laboratory], killed: int | None
) -> None:
    lab = laboratories("several")
    asked = {"embedded": "micro", "limit": 24, "max_new_tokens": 12}
    suites = {"gsm8k": SuiteSpec(name="gsm8k", num_fewshot=0, **asked), "mt_bench": SuiteSpec(name="mt_bench", **asked)}
    request = ResponsesRequest(checkpoint=lab.model, suites=suites, seed=1, precision="float32", batch_tokens=400)
    commit = lab.by(2, RESPONSES, request, killed)
    one = laboratories("one")
    alone = request.model_copy(update={"checkpoint": one.model})
    assert execute(RESPONSES, alone, one.store).digest == commit.digest
    lab.kept_once()
    assert {rank for rank, _ in lab.noted("kept")} == {0, 1}
    if killed is None:
        shares = commit.summary["tokens_per_rank"]
        assert min(shares) > 0.8 * max(shares), "whole batches are dealt, and answers end when they like"
        assert Counter(rank for rank, _ in lab.noted("loaded")) == {0: 1, 1: 1}


def test_workers_sample_as_one_from_several_sources(laboratories: Callable[[str], Laboratory]) -> None:
    lab, one = laboratories("several"), laboratories("one")
    sources = []
    for source, count in (("a", 70), ("b", 5)):
        path = lab.folder / f"{source}.jsonl"
        asked = [{"prompt": [{"role": "user", "content": f"{source} {n}"}]} for n in range(count)]
        path.write_text("".join(json.dumps(each) + "\n" for each in asked), encoding="utf-8")
        sources.append(PromptSource(file=pin_file(str(path))))
    request = CandidatesRequest(
        checkpoint=lab.model,
        prompts=tuple(sources),
        n=2,
        temperature=0.8,
        max_new_tokens=6,
        seed=1,
        precision="float32",
        batch_tokens=400,
    )
    alone = request.model_copy(update={"checkpoint": one.model})
    together, single = lab.by(2, CANDIDATES, request), execute(CANDIDATES, alone, one.store)
    assert together.digest == single.digest
    first = lab.store.commit_of(Artifact.model_validate(together.summary["parts"][0])).summary
    assert first["candidates"] == 140
    assert min(first["tokens_per_rank"]) > 0.8 * max(first["tokens_per_rank"]), "in whole batches"
    assert Counter(rank for rank, _ in lab.noted("loaded")) == {0: 1, 1: 1}


def test_bad_input_of_a_worker_is_said_once_and_not_tried_again(laboratories: Callable[[str], Laboratory]) -> None:
    """torchrun starts ranks again that have ended, and does not know why they did."""
    lab = laboratories("one")
    request = scoring(lab).model_copy(update={"tokens": TokenPolicy(max_length=4096)})
    with pytest.raises(BadInput, match="positions"):
        lab.by(2, REFERENCE, request, watched=False)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_shares_are_even_whatever_the_lengths(workers: int) -> None:
    draw = Random(workers)
    for _ in range(200):
        costs = [int(draw.lognormvariate(5, 1)) + 1 for _ in range(draw.randint(1, 200))]
        dealt = evenly(costs, workers)
        assert sorted(index for share in dealt for index in share) == list(range(len(costs)))
        loads = [sum(costs[index] for index in share) for share in dealt]
        assert max(loads) - min(loads) <= max(costs)
