"""A folder of evaluation data brings its own sentence splitter."""

from __future__ import annotations

from pathlib import Path

import nltk

from eval.suites.lm_eval_task import nltk_data_beside


def test_nltk_looks_beside_the_data_file_and_its_folder_and_only_meanwhile(tmp_path: Path) -> None:
    data = tmp_path / "ifeval" / "input_data.jsonl"
    (tmp_path / "nltk_data").mkdir()
    (tmp_path / "ifeval" / "nltk_data").mkdir(parents=True)
    before = list(nltk.data.path)
    with nltk_data_beside(data):
        assert nltk.data.path == [*before, str(data.parent / "nltk_data"), str(tmp_path / "nltk_data")]
    assert nltk.data.path == before


def test_a_url_or_no_file_adds_nothing() -> None:
    before = list(nltk.data.path)
    for data in (None, "s3://bucket/ifeval/input_data.jsonl"):
        with nltk_data_beside(data):
            assert nltk.data.path == before
