from __future__ import annotations

from typing import Any

import pytest

from alignment.recipe import DataSource
from eval.suites import SuiteSpec, suite_named
from eval.suites.items import load_items


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the hub is asked for: (data set, configuration, split, revision); it answers two rows."""
    import datasets

    calls: list[tuple[Any, ...]] = []

    def load(path: str, name: str | None, split: str, revision: str | None) -> Any:
        calls.append((path, name, split, revision))
        return datasets.Dataset.from_list([{"question": f"{name} {n}?", "answer": n} for n in range(2)])

    monkeypatch.setattr(datasets, "load_dataset", load)
    return calls


def source(**changes: Any) -> DataSource:
    return DataSource(hub="owner/set", revision="a" * 40, split="test", **changes)


def items(name: str, hub: DataSource) -> list[dict[str, Any]]:
    spec = SuiteSpec(name=name, hub=hub, max_new_tokens=8)
    return [item.fields for item in load_items(suite_named(name), spec, seed=0)]


def test_a_tasks_own_configuration_is_read_unless_another_is_named(asked: list[tuple[Any, ...]]) -> None:
    assert [one["question"] for one in items("arc_challenge", source())] == ["ARC-Challenge 0?", "ARC-Challenge 1?"]
    items("arc_challenge", source(config="ARC-Easy"))
    assert asked == [("owner/set", config, "test", "a" * 40) for config in ("ARC-Challenge", "ARC-Easy")]


def test_a_group_reads_every_tasks_configuration_and_marks_its_rows(asked: list[tuple[Any, ...]]) -> None:
    found = items("hendrycks_math", source())
    assert len(found) == 14 and len(asked) == 7
    assert {one["subset"] for one in found} == set(suite_named("hendrycks_math").members)
    assert len(items("mmlu", source(config="all"))) == 2
