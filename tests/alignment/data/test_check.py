"""Checking files says what a shard of them would hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alignment.data.files import pin_file
from alignment.data.validate import check_files
from alignment.errors import BadInput
from alignment.stages import execute
from alignment.stages.preference_shard import STAGE, ShardRequest
from alignment.store import Store


def pair(number: int) -> dict[str, str]:
    return {"prompt": f"p{number}", "chosen": "c", "rejected": "r"}


def save(path: Path, records: list[Any]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


def test_a_checked_file_has_the_numbers_and_digest_of_its_shard(tmp_path: Path) -> None:
    url = save(tmp_path / "a.jsonl", [pair(1), pair(1), {}, pair(2)])
    checked = check_files([url])
    shard = execute(STAGE, ShardRequest(file=pin_file(url)), Store(str(tmp_path / "store"))).summary
    assert checked == {
        "records": 4,
        "rows": 4,
        "accepted": shard["rows"],
        "quarantined": shard["quarantined"],
        "reasons": shard["reasons"],
        "forms": shard["forms"],
        "kind": "paired",
        "advice": checked["advice"],
        "digest": shard["digest"],
        "quarantined_rows": [
            {"file": url, "row": 2, "reason": "duplicate of row 1"},
            {"file": url, "row": 3, "reason": "unknown form"},
        ],
    }
    json.dumps(checked)


def test_files_are_taken_together(tmp_path: Path) -> None:
    urls = [save(tmp_path / "a.jsonl", [pair(1), pair(2)]), save(tmp_path / "b.jsonl", [pair(2), pair(3)])]
    checked = check_files(urls)
    assert (checked["rows"], checked["accepted"], checked["reasons"]) == (4, 3, {"duplicate": 1})
    assert checked["digest"] == check_files([str(tmp_path)])["digest"]


def test_a_file_without_a_valid_row_has_no_kind(tmp_path: Path) -> None:
    checked = check_files([save(tmp_path / "a.jsonl", [{}, {}])])
    assert (checked["accepted"], checked["quarantined"], checked["kind"]) == (0, 2, None)


def test_a_missing_file_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"none\.jsonl: no such file"):
        check_files([str(tmp_path / "none.jsonl")])


@pytest.mark.real_data
def test_the_real_files_are_all_accounted_for(real_data: Path) -> None:
    for name, rows in (
        ("hh_rlhf/harmless-base.test.jsonl.gz", 2312),
        ("demo/dpo_en_demo.json", 300),
        ("demo/kto_en_demo.json", 300),
    ):
        checked = check_files([str(real_data / name)])
        assert checked["rows"] == rows == checked["accepted"] + checked["quarantined"]
        assert len(checked["quarantined_rows"]) == checked["quarantined"] == sum(checked["reasons"].values())
