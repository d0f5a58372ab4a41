"""Faults planted in the quickstart's pairs: each is found by its own guard and by no other, and clean pairs by none."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from alignment.data.assign import ShardFiles
from alignment.data.embedded import embedded
from alignment.data.files import pin_file
from alignment.data.manifest import read_manifest
from alignment.data.noise import estimate
from alignment.data.overlap import overlap_of, strings_in
from alignment.data.rows import iter_rows, text_of
from alignment.data.statistics import GUARDS, Finding, NearNumbers, findings
from alignment.data.words import near_duplicates
from alignment.logprobs.table import DROPPED_SCHEMA, LOGPROBS_SCHEMA, writer
from alignment.stages import Context, Request, Result, Stage, execute
from alignment.stages import preference_manifest as manifest
from alignment.stages import preference_shard as shard
from alignment.stages.preference_manifest import ManifestRequest
from alignment.stages.preference_shard import ShardRequest
from alignment.stages.stage import ManifestSummary
from alignment.store import Artifact, Store

Pair = dict[str, Any]
Shards = list[list[Pair]]
SUITE = "gsm8k"


@cache
def clean() -> Shards:
    return [embedded("micro").preference_records(day, 0) for day in range(3)]


@cache
def suite_items() -> list[dict[str, Any]]:
    return embedded("micro").suite_items(SUITE, 0)


def turned(pair: Pair) -> Pair:
    return pair | {"chosen": pair["rejected"], "rejected": pair["chosen"]}


def content(answer: Any) -> str:
    return answer if isinstance(answer, str) else answer[-1]["content"]


def said(answer: Any, text: str) -> Any:
    """The answer with another text."""
    return text if isinstance(answer, str) else [*answer[:-1], {**answer[-1], "content": text}]


def flipped(shards: Shards) -> Shards:
    draw = random.Random(1)
    return [[turned(pair) if draw.random() < 0.2 else pair for pair in pairs] for pairs in shards]


def swapped(shards: Shards) -> Shards:
    return [*shards[:-1], [turned(pair) for pair in shards[-1]]]


def leaked(shards: Shards) -> Shards:
    items = suite_items()[:20]
    pairs = [{"prompt": item["question"], "chosen": item["answer"], "rejected": "No."} for item in items]
    return [[*shards[0], *(as_of(shards[0][0], pair) for pair in pairs)], *shards[1:]]


def as_of(one: Pair, pair: Pair) -> Pair:
    """Plain texts in the form of the shard's other pairs."""
    if isinstance(one["chosen"], str):
        return pair
    turns = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    return {name: [{"role": turns[name], "content": text}] for name, text in pair.items()}


def contradictory(shards: Shards) -> Shards:
    return [[*shards[0], *map(turned, shards[1][:40])], *shards[1:]]


def longer(shards: Shards) -> Shards:
    def longest(pair: Pair) -> Pair:
        text, other = content(pair["chosen"]), content(pair["rejected"])
        room = max(0, len(other) - len(text) + 2)
        return pair | {"chosen": said(pair["chosen"], text + "!" * room if len(text) <= len(other) else text)}

    return [[longest(pair) for pair in pairs] for pairs in shards]


def repeated(shards: Shards) -> Shards:
    again = [pair | {"chosen": said(pair["chosen"], content(pair["chosen"]).upper())} for pair in shards[1][:200]]
    return [[*shards[0], *again], *shards[1:]]


def shuffled(shards: Shards) -> Shards:
    draw = random.Random(2)

    def mixed(answer: Any) -> Any:
        words = content(answer).split()
        return said(answer, " ".join(draw.sample(words, len(words))) + " ~")

    return [*shards[:-1], [pair | {side: mixed(pair[side]) for side in ("chosen", "rejected")} for pair in shards[-1]]]


def misjudged(shards: Shards) -> Shards:
    draw = random.Random(4)

    def scored(pair: Pair) -> Pair:
        high, low = (draw.uniform(6, 10), draw.uniform(1, 5))
        wrong = draw.random() < 0.1
        return pair | {"chosen_score": low if wrong else high, "rejected_score": high if wrong else low}

    return [[scored(pair) for pair in pairs] for pairs in shards]


def paid_by_length(shards: Shards) -> Shards:
    def scored(pair: Pair) -> Pair:
        gap = len(content(pair["chosen"])) - len(content(pair["rejected"]))
        return pair | {"chosen_score": 50 + gap, "rejected_score": 0}

    return [[scored(pair) for pair in pairs] for pairs in shards]


class ScoreRequest(Request):
    """A reference that gives a token of shuffled words, which end in ~, 5 nats and any other 1."""

    shard: Artifact


def score(request: ScoreRequest, context: Context) -> Result:
    cells: dict[str, list[Any]] = {name: [] for name in LOGPROBS_SCHEMA.names}
    for row in iter_rows(context.fetch(request.shard) / "rows.parquet"):
        cells["row_id"].append(row.row_id)
        for side, answer in (("chosen", row.chosen), ("rejected", row.rejected)):
            text = text_of(answer or "")
            tokens = len(text.split())
            cells[f"{side}_logp"].append(-tokens * (5.0 if text.endswith("~") else 1.0))
            cells[f"{side}_tokens"].append(tokens)
            cells[f"{side}_key"].append("")
    for name, table in (
        ("logprobs", pa.table(cells, schema=LOGPROBS_SCHEMA)),
        ("dropped", DROPPED_SCHEMA.empty_table()),
    ):
        with writer(context.out / f"{name}.parquet", table.schema) as file:
            file.write_table(table)
    return Result(request.shard.digest, {"fingerprint": "f" * 64})


SCORE = Stage(name="reference_logprobs", code_version=1, request=ScoreRequest, run=score)


def found_in(shards: Shards, folder: Path) -> dict[str, Finding]:
    store = Store(str(folder / "store"))
    rows: dict[str, Artifact] = {}
    for number, pairs in enumerate(shards):
        path = folder / f"day-{number}.jsonl"
        path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
        rows[path.stem] = execute(shard.STAGE, ShardRequest(file=pin_file(str(path))), store).artifact
    scored = {name: execute(SCORE, ScoreRequest(shard=made), store).artifact for name, made in rows.items()}
    commit = execute(manifest.STAGE, ManifestRequest(shards=rows, references=scored, held_out_fraction=0.1), store)
    pinned = read_manifest(store.fetch(commit.artifact)).shards
    files = [ShardFiles(s.name, s.rows, store.fetch(s.shard), None) for s in pinned]
    sizes = [file.rows for file in files]
    near = near_duplicates([file.folder for file in files], sizes, 0.9, folder / "near")
    items = {SUITE: {str(n): list(strings_in(i)) for n, i in enumerate(suite_items())}}
    found = [
        *ManifestSummary.of(commit).findings(),
        *findings(
            near=NearNumbers(rows=sum(sizes), near_duplicates=int(np.asarray(near).sum()), similarity=0.9),
            overlap=overlap_of(store, commit.artifact, items),
            noise=estimate(files),
        ),
    ]
    return {finding.name: finding for finding in found}


def test_clean_pairs_trip_no_guard(tmp_path: Path) -> None:
    found = found_in(clean(), tmp_path)
    assert set(found) == set(GUARDS) - {"length_reward", "score_order"}, "these two need scores"
    assert not [finding for finding in found.values() if not finding.passed]


FAULTS: dict[str, tuple[Callable[[Shards], Shards], str]] = {
    "label_noise": (flipped, r"about 2\d % of 2,\d\d\d labels are flipped .95 % interval .*cdpo or ipo"),
    "swapped_shards": (swapped, r"the labels of day-2 .* say the opposite"),
    "contamination": (leaked, r"gsm8k: 20 rows hold 20 of its items \(0, 1, 10, …\).*decontaminate: \[gsm8k\]"),
    "contradictions": (contradictory, r"80 of 2,\d\d\d rows contradict another row"),
    "length_bias": (longer, r"the longer one in 100 % of the pairs .*max_length_gap"),
    "score_order": (misjudged, r"the rejected answer has the higher score in (9|1\d)(\.\d)? % of 2,100 scored pairs"),
    "length_reward": (paid_by_length, r"correlates with the difference in length at \+1\.00"),
    "near_duplicates": (repeated, r"20\d of 2,\d\d\d rows are near-duplicates .*near_duplicates: 0.9"),
    "distribution_shift": (shuffled, r"far below lies day-2 \(-5\.\d\d\).*min_reference_logp"),
}


@pytest.mark.slow
@pytest.mark.parametrize("guard", FAULTS)
def test_a_planted_fault_is_found_by_its_own_guard_and_no_other(guard: str, tmp_path: Path) -> None:
    plant, sentence = FAULTS[guard]
    tripped = {name: found.sentence for name, found in found_in(plant(clean()), tmp_path).items() if not found.passed}
    assert list(tripped) == [guard], tripped
    assert re.search(sentence, tripped[guard]), tripped[guard]
