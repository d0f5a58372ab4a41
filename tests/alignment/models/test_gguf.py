"""GGUF files as base models. What reads them is no dependency, so what is tested here comes before that; a real file
(SmolLM2-135M-Instruct in 4 bits) went through `make smollm2` by hand."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from alignment.errors import BadInput
from alignment.models.gguf import check_gguf, gguf_config, is_gguf
from alignment.models.pin import pin_model
from alignment.recipe import ModelSource


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.Q4_1.gguf"
    path.write_bytes(b"GGUF\x03\x00\x00\x00")
    return path


def with_reader(monkeypatch: pytest.MonkeyPatch, *, installed: bool) -> None:
    found = importlib.util.find_spec

    def find(name: str, *more: Any) -> Any:
        return found("sys" if installed else "no_such_package") if name == "gguf" else found(name, *more)

    monkeypatch.setattr(importlib.util, "find_spec", find)


def test_a_file_is_pinned_by_its_content_and_not_by_its_place(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_reader(monkeypatch, installed=True)
    pinned = pin_model(ModelSource(path=str(file)))
    assert pinned.files is not None and [one.url for one in pinned.files] == [str(file)]
    moved = file.rename(file.with_name("other.gguf"))
    assert pin_model(ModelSource(path=str(moved))).identity() == pinned.identity()
    moved.write_bytes(b"GGUF\x03\x00\x00\x01")
    assert pin_model(ModelSource(path=str(moved))).identity() != pinned.identity()


def test_what_cannot_be_read_is_said_before_anything_is_made(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_reader(monkeypatch, installed=False)
    with pytest.raises(BadInput, match="package gguf, which is not installed: pip install gguf"):
        pin_model(ModelSource(path=str(file)))
    with_reader(monkeypatch, installed=True)
    with pytest.raises(BadInput, match="no such file"):
        pin_model(ModelSource(path=str(file.with_name("none.gguf"))))
    file.write_bytes(b"<html>")
    with pytest.raises(BadInput, match="does not begin as a GGUF file does"):
        check_gguf(file)


def test_an_error_of_the_reader_is_one_line_that_names_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_reader(monkeypatch, installed=True)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(BadInput) as error:
        gguf_config(file)
    assert str(error.value).startswith(f"{file}: Transformers cannot read this GGUF file: ")
    assert "\n" not in str(error.value)


def test_only_the_ending_says_that_a_path_is_such_a_file() -> None:
    assert is_gguf("a/b.GGUF") and not is_gguf("a/gguf") and not is_gguf("a.gguf/model")
