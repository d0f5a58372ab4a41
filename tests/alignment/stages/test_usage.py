"""What a stage took is recorded with its artifact, and told in the same numbers everywhere."""

from __future__ import annotations

import pytest

from alignment.stages import Context, Request, Result, Stage, execute
from alignment.stages.usage import POOL, Usage
from alignment.store import Store


class Asked(Request):
    """Nothing but a name."""

    name: str


def run(request: Asked, context: Context) -> Result:
    return Result(digest=request.name, summary={"tokens": 3000})


STAGE = Stage("usage_of", 1, Asked, run)


def test_an_artifact_records_its_pool_its_ranks_and_its_memory(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(POOL, "h100")
    told = execute(STAGE, Asked(name="a"), store).environment
    assert (told["pool"], told["ranks"], told["gpus"]) == ("h100", "1", "0")
    assert 0 < float(told["peak_memory_gib"]) < 64


def test_gpu_seconds_tokens_and_cost_follow_from_the_record(store: Store) -> None:
    commit = execute(STAGE, Asked(name="b"), store)
    eight = commit.model_copy(
        update={"seconds": 1800.0, "environment": commit.environment | {"gpus": "8", "peak_memory_gib": "71.5"}}
    )
    assert Usage.of(eight, price_per_hour=24.0).numbers() == {
        "seconds": 1800.0,
        "gpu_seconds": 14400.0,
        "peak_memory_gib": 71.5,
        "tokens_per_second": 1.6667,
        "cost_usd": 12.0,
    }
    measured = eight.model_copy(update={"summary": {"tokens": 3000, "tokens_per_second": 20_000.0}})
    assert Usage.of(measured).tokens_per_second == 20_000.0


def test_a_record_of_an_earlier_version_says_less(store: Store) -> None:
    commit = execute(STAGE, Asked(name="c"), store)
    old = commit.model_copy(update={"seconds": 2.0, "environment": {"device": "cpu"}, "summary": {}})
    assert Usage.of(old).numbers() == {"seconds": 2.0}
