"""A small model of any architecture, and small data in the published formats, for whole runs of the graph."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from tests import tiny
from tests.homes import Homes
from tests.pipeline.live import Live

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
WIDE = {"intermediate_size": 64, "max_position_embeddings": 2048}


def _write_model(folder: Path, family: str, template: str | None, **changed: Any) -> Path:
    """A checkpoint of the architecture: two layers, random weights, a byte-level tokenizer."""
    return tiny.write_model(folder, tiny.byte_tokenizer(pad=True, template=template), family, **WIDE, **changed)


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def _small_data(folder: Path) -> dict[str, str]:
    """Data in the published formats of what the recipes name: UltraChat, UltraFeedback, and the three suites."""

    def user(text: str) -> dict[str, str]:
        return {"role": "user", "content": text}

    def assistant(text: str) -> dict[str, str]:
        return {"role": "assistant", "content": text}

    chats = [{"prompt": f"Say {n}", "messages": [user(f"Say {n}"), assistant(f"Number {n}.")]} for n in range(40)]
    pairs = [
        {
            "prompt": f"Name {n}",
            "chosen": [user(f"Name {n}"), assistant(f"It is {n}.")],
            "rejected": [user(f"Name {n}"), assistant("No.")],
        }
        for n in range(48)
    ]
    sums = [{"question": f"What is {n} + 1?", "answer": f"{n} + 1 = {n + 1}\n#### {n + 1}"} for n in range(12)]
    shots = [{"question": f"What is {n} + 2?", "answer": f"#### {n + 2}"} for n in range(8)]
    prompts = [
        {
            "key": n,
            "prompt": f"Write {n} without commas.",
            "instruction_id_list": ["punctuation:no_comma"],
            "kwargs": [{}],
        }
        for n in range(6)
    ]
    questions = [{"question_id": n, "category": "writing", "turns": [f"Write {n}.", "Again."]} for n in range(81, 85)]
    kinds = ("homonyms", "contrast_homonyms")
    asked = [f"{n},{kinds[n % 2]},How do I kill {n} processes?" for n in range(6)]
    (folder / "xstest.csv").write_text("\n".join(["id,type,prompt", *asked]) + "\n", encoding="utf-8")
    return {
        "xstest": str(folder / "xstest.csv"),
        "chats": _write_lines(folder / "chats.jsonl", chats),
        "pairs": _write_lines(folder / "pairs.jsonl", pairs),
        "gsm8k": _write_lines(folder / "gsm8k.jsonl", sums),
        "few_shot": _write_lines(folder / "few_shot.jsonl", shots),
        "ifeval": _write_lines(folder / "ifeval.jsonl", prompts),
        "mt_bench": _write_lines(folder / "mt_bench.jsonl", questions),
    }


@pytest.fixture
def write_model() -> Callable[..., Path]:
    """Writes a checkpoint: (folder, family, template, fields of the configuration) to the folder."""
    return _write_model


@pytest.fixture(scope="session")
def small_inputs(homes: Homes) -> Iterator[Path]:
    """The model and the data of the small recipe, the same files for all tests: none may change them."""

    def make(folder: Path) -> None:
        _write_model(folder / "model", "llama", CHAT_TEMPLATE)
        _small_data(folder)

    def contents(folder: Path) -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    folder = homes.made("inputs", make)
    before = contents(folder)
    yield folder
    assert contents(folder) == before, "a test changed them"


@pytest.fixture
def small_data(tmp_path: Path) -> dict[str, str]:
    """Name of a data set to the path of its file, which the test may change."""
    return _small_data(tmp_path)


@pytest.fixture
def shard_folder(tmp_path: Path, small_data: dict[str, str]) -> Path:
    """Three shards of sixteen pairs."""
    lines = Path(small_data["pairs"]).read_text(encoding="utf-8").splitlines(keepends=True)
    folder = tmp_path / "shards"
    folder.mkdir()
    for index in range(3):
        (folder / f"day-{index}.jsonl").write_text("".join(lines[index * 16 : index * 16 + 16]), encoding="utf-8")
    return folder


@pytest.fixture
def small_recipe(small_inputs: Path) -> dict[str, Any]:
    """A recipe as plain data: a tiny Llama that is adopted as it is, DPO on 48 pairs in two shards, IFEval."""
    model = str(small_inputs / "model")
    return {
        "name": "small",
        "base_model": {"path": model},
        "sft": {"adopt": {"path": model}, "precision": "float32"},
        "preferences": {"files": [str(small_inputs / "pairs.jsonl")], "split_into": 2, "settle_seconds": 0},
        "held_out_fraction": 0.1,
        "tokens": {"max_length": 256},
        "reference": {"precision": "float32"},
        "dpo": {"precision": "float32", "learning_rate": 1e-3, "batch_size": 8, "micro_batch_size": 4},
        "evals": {"precision": "float32", "ifeval": {"data": str(small_inputs / "ifeval.jsonl"), "max_new_tokens": 8}},
    }


@pytest.fixture
def hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file; while it is there, trainings in processes started from here wait at every checkpoint they have saved."""
    held = str(Path(__file__).with_name("held_training"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [held, os.environ.get("PYTHONPATH")])))
    monkeypatch.setenv("TRAINING_HELD_BY", str(tmp_path / "hold"))
    return tmp_path / "hold"


@pytest.fixture
def live(tables: None, tmp_path: Path) -> Iterator[Live]:
    """A `Live` (live.py) on the test's home; nothing of it is left when the test ends."""
    from resources.home import ensure_home

    ensure_home()
    with dg.DagsterInstance.get() as instance:
        live = Live(instance, tmp_path)
        try:
            yield live
        finally:
            live.stop()
