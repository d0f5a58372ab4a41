"""Recipes and versions side by side, the rows of a version, and a return to the version that is champion already."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from pyarrow import csv

from alignment.errors import BadInput
from alignment.recipe import Recipe, load_recipe
from alignment_dags.cli.models import lines
from alignment_dags.cli.output import show_comparison, show_diff
from alignment_dags.recipes import flat
from alignment_dags.registry.compare import compare, diff
from alignment_dags.registry.lineage import lineage_of
from alignment_dags.registry.promote import Promotion, promote
from alignment_dags.registry.rows import write_rows
from alignment_dags.run.run import claim
from assets.building.upstream import Upstream
from resources.mlflow import Tracking

PASSES = {"metrics": {"ifeval/prompt_level_strict_acc": {"no_regression": 1.0}}}
METRIC = "ifeval/prompt_level_strict_acc"


@pytest.fixture
def write(small_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes the small recipe, in use and with a gate; another `beta` gives another policy."""
    monkeypatch.setenv("ALIGN_RECIPES", str(tmp_path / "recipe.yaml"))

    def write(beta: float) -> Path:
        path = tmp_path / "recipe.yaml"
        data = small_recipe | {"dpo": small_recipe["dpo"] | {"beta": beta}, "gate": PASSES}
        path.write_text(yaml.safe_dump(data), encoding="utf-8")
        return path

    return write


def test_two_versions_are_compared_by_name_and_what_differs_is_listed(
    write: Callable[[float], Path],
    finished: Callable[..., Upstream],
    bring_up_to_date: Callable[[Recipe], Upstream],
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = finished(load_recipe(write(0.1)))
    scores = str(first.store.fetch(first("policy_evals/ifeval")) / "samples.parquet")
    made = bring_up_to_date(load_recipe(write(0.9)))
    capsys.readouterr()

    found = compare("small@1", "small@champion", None, None)
    assert set(found) >= {METRIC, "ifeval/inst_level_strict_acc"}
    assert found["preferences/accuracy"]["n"] > 0
    assert set(compare("small@1", "small@2", "preferences/margin", None)) == {"preferences/margin"}
    assert found[METRIC]["margin"] == 0.05, "the report's: a twentieth of the scale"
    assert compare("small@1", "small", None, None) == found, "the recipe's newest policy is version 2"
    assert compare("small@1", str(write(0.9)), None, None) == found, "a recipe's file is the recipe"
    by_file = compare(scores, "small@2", METRIC, 0.2)
    assert "both sides" not in caplog.text
    compare("small", "small@2", None, None)
    compare(scores, scores, None, None)
    policy = made("policy_checkpoint").digest[:12]
    told = [message for message in caplog.messages if message.startswith("both sides are one")]
    assert len(told) == 2 and f"one model (policy {policy})" in told[0] and "one file" in told[1]
    assert by_file == {METRIC: found[METRIC] | {"margin": 0.2, "verdict": by_file[METRIC]["verdict"]}}
    show_comparison(found)
    assert "margin" in capsys.readouterr().out

    told = diff("small@1", "small@champion")
    assert told["settings"] == {"dpo.beta": [0.1, 0.9]}
    assert told["code"] == {} and told["shards"] == {"first_alone": [], "second_alone": [], "changed": [], "same": 2}
    same = {name for name, (before, after) in told["checkpoints"].items() if before == after}
    assert same == {"base", "sft", "manifest"}
    assert told["checkpoints"]["policy"][1] == made("policy_checkpoint").digest
    assert told["metrics"][METRIC]["verdict"] == found[METRIC]["verdict"]
    before, after = told["taken"]["policy_checkpoint"]
    assert before["seconds"] > 0 < after["seconds"] and before["gpu_seconds"] == 0
    total = sum(one[1]["seconds"] for stage, one in told["taken"].items() if stage != "total" and one[1] is not None)
    assert told["taken"]["total"][1]["seconds"] == pytest.approx(total, abs=0.01)
    show_diff(told)
    out = capsys.readouterr().out
    assert "dpo.beta" in out and "0.9" in out and "2 shards are the same" in out and "  reference_logprobs" in out

    for baseline, words in (
        ("smal", r"smal: no file, recipe or MODEL@VERSION; did you mean small\?"),
        ("small@7", "has no version '7'"),
        ("none.parquet", r"none\.parquet: no such file"),
    ):
        with pytest.raises(BadInput, match=words):
            compare(baseline, "small", None, None)
    with pytest.raises(BadInput, match=r"no metric 'preferences/acuracy' that both have; did you mean preferences/acc"):
        compare("small@1", "small", "preferences/acuracy", None)
    with pytest.raises(BadInput, match="a samples file: it says nothing of settings"):
        diff(scores, "small")


def test_a_metric_that_a_file_lacks_is_told_with_the_files_name(
    write: Callable[[float], Path], finished: Callable[..., Upstream]
) -> None:
    made = finished(load_recipe(write(0.1)))
    scores = str(made.store.fetch(made("policy_evals/ifeval")) / "samples.parquet")
    with pytest.raises(BadInput, match=rf"^{scores}: the baseline has no metric 'chess'; it has prompt_level"):
        compare(scores, scores, "chess", None)


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_the_rows_of_a_version_are_written_with_shard_and_split(
    suffix: str, write: Callable[[float], Path], finished: Callable[..., Upstream], tmp_path: Path
) -> None:
    made = finished(load_recipe(write(0.1)))
    out = tmp_path / f"rows.{suffix}"
    told = write_rows("small", out)
    table = pq.read_table(out) if suffix == "parquet" else csv.read_csv(out)
    assert table.column_names == ["row_id", "shard", "split", "reason"]
    counts = Counter(table["split"].to_pylist())
    trained = made.store.commit_of(made("policy_checkpoint")).summary["rows_trained"]
    assert counts["train"] == told["train"] == trained and told["rows"] == 48
    assert len(set(table["shard"].to_pylist())) == 2
    with pytest.raises(BadInput, match=r"field '--rows': cannot be written"):
        write_rows("small", Path("/proc/none/rows.parquet"))


def test_lineage_answers_in_short_first_and_shows_the_recipe_when_asked(
    write: Callable[[float], Path], finished: Callable[..., Upstream]
) -> None:
    finished(load_recipe(write(0.1)))
    page = list(lines(lineage_of("small")))
    assert page[0] == "small version 1"
    assert page[1].startswith("  trained on ") and "rows of 2 shards, from adopted model" in page[1]
    assert "recipe" not in [line.strip() for line in page]
    assert "  name: small" in list(lines(lineage_of("small"), verbose=True))


def test_a_return_to_the_present_champion_does_nothing(
    write: Callable[[float], Path],
    finished: Callable[..., Upstream],
    align: Callable[..., tuple[int, dict[str, Any], str]],
    align_command: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = write(0.1)
    made = finished(load_recipe(path))
    before = made("registered_model")
    code, told, error = align("promote", "small", "--to", "1")
    assert code == 0, error
    assert (told["version"], told["decision"], told["dagster_run"]) == ("1", None, None)
    assert Upstream(made.store, "small")("registered_model") == before

    monkeypatch.setenv("ALIGN_RECIPES", "none*.yaml")
    with pytest.raises(BadInput, match="no recipe in use registers 'small'"):
        promote(Promotion("small", to="1"), print)
    claim(made.store, load_recipe(path))  # as `align run` does
    assert promote(Promotion("small", to="1"), print)["decision"] is None, "the file that was run last is found"

    Tracking().client().delete_registered_model_alias("small", "champion")
    asked: list[Any] = []
    monkeypatch.setattr("alignment_dags.registry.promote._carry_out", lambda *_: asked.append(1) or "run")
    with pytest.raises(BadInput, match="has a new policy since the decision"):  # it went on to a registration
        promote(Promotion("small", to="1"), print)
    assert asked, "an alias that was moved by hand is set again"


def test_settings_of_named_sources_are_told_apart_and_one_that_a_side_lacks_is_by_default(
    capsys: pytest.CaptureFixture[str],
) -> None:
    sources = [{"name": "ask", "files": ["a.jsonl"]}, {"name": "web", "files": ["b.jsonl"], "weight": 2.0}]
    assert dict(flat({"preferences": {"sources": sources}, "tags": ["x"], "seed": 1})) == {
        "preferences.sources.ask.files": ["a.jsonl"],
        "preferences.sources.web.files": ["b.jsonl"],
        "preferences.sources.web.weight": 2.0,
        "tags": ["x"],
        "seed": 1,
    }
    nothing: dict[str, Any] = {name: {} for name in ("code", "checkpoints", "taken", "metrics")}
    shards = {"first_alone": [], "second_alone": [], "changed": [], "same": 1}
    alike = {"sides": ["one", "two"], "shards": shards} | nothing
    show_diff(alike | {"settings": {"optimise.beta": [None, 0.2]}, "checkpoints": {"policy": ["a", "b"]}})
    assert "  optimise.beta  by default  0.2" in capsys.readouterr().out
