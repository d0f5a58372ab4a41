from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignment.digest import json_digest
from alignment.generation.generator import Generator
from alignment.models.checkpoint import (
    checkpoint_summary,
    digest_checkpoint,
    load_model,
    load_tokenizer,
    rope_by_length,
    whole_summary,
)
from alignment.models.ends import end_ids
from tests.tiny import byte_tokenizer, letter_tokenizer, write_model

Make = Callable[..., Path]


def mend(folder: Path, file: str, **changed: Any) -> None:
    path = folder / file
    held = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({name: value for name, value in (held | changed).items() if value is not None}))


@pytest.mark.parametrize("tokenizer", [byte_tokenizer, letter_tokenizer])
@pytest.mark.parametrize("named", [None, 7, [1, 9], [5, 9]])
def test_the_ends_read_from_files_are_those_that_answers_stop_at(tmp_path: Path, tokenizer: Any, named: Any) -> None:
    folder = write_model(tmp_path / "model", tokenizer())
    mend(folder, "generation_config.json", eos_token_id=named)
    generator = Generator(load_model(folder, "float32", "cpu"), load_tokenizer(folder), 64)
    assert sorted(end_ids(folder)) == sorted(generator.end_ids)
    assert checkpoint_summary(folder)["end_ids"] == end_ids(folder)


@pytest.mark.parametrize(
    ("tokenizer_config", "files", "expected"),
    [
        ({"eos_token": "</s>", "added_tokens_decoder": {"2": {"content": "</s>"}}}, {}, [2]),
        ({"eos_token": {"content": "</s>"}}, {"tokenizer.json": {"added_tokens": [{"id": 4, "content": "</s>"}]}}, [4]),
        ({"eos_token": "</s>"}, {"tokenizer.json": {"model": {"vocab": {"</s>": 6}}}}, [6]),
        ({"eos_token": "</s>"}, {"tokenizer.json": {"model": {"vocab": [["a", 0.0], ["</s>", -1.0]]}}}, [1]),
        ({"eos_token": "</s>"}, {"vocab.json": {"</s>": 8}}, [8]),
        ({}, {"special_tokens_map.json": {"eos_token": "</s>"}, "added_tokens.json": {"</s>": 3}}, [3]),
        ({"eos_token": None}, {}, []),
        ({}, {"config.json": {"text_config": {"eos_token_id": [11, 12]}}}, [11, 12]),
    ],
)
def test_the_eos_is_found_wherever_a_tokenizer_keeps_it(
    tmp_path: Path, tokenizer_config: dict[str, Any], files: dict[str, Any], expected: list[int]
) -> None:
    for name, held in {"config.json": {}, "tokenizer_config.json": tokenizer_config, **files}.items():
        (tmp_path / name).write_text(json.dumps(held))
    assert end_ids(tmp_path) == expected


@pytest.mark.parametrize(
    ("file", "changed"),
    [
        ("generation_config.json", {"eos_token_id": [1, 9]}),
        ("config.json", {"eos_token_id": 9}),
        ("generation_config.json", {"stop_strings": ["User:"]}),
    ],
)
def test_what_ends_an_answer_changes_the_digest_and_no_part_of_it(
    checkpoint: Make, file: str, changed: dict[str, Any]
) -> None:
    folder = checkpoint()
    before = digest_checkpoint(folder)
    mend(folder, file, **changed)
    after = digest_checkpoint(folder)
    assert after.digest != before.digest
    assert (after.weights, after.config, after.tokenizer) == (before.weights, before.config, before.tokenizer)


def test_a_checkpoint_that_ends_with_its_tokenizers_eos_has_the_digest_of_earlier_versions(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", byte_tokenizer())
    digest = digest_checkpoint(folder)
    assert digest.digest == json_digest([digest.weights, digest.config, digest.tokenizer])
    mend(folder, "generation_config.json", temperature=0.3, eos_token_id=[1])
    assert digest_checkpoint(folder) == digest


def test_what_an_earlier_version_recorded_stands_and_the_rest_is_read(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", byte_tokenizer())
    recorded = {"weights_digest": "w", "config_digest": "c", "tokenizer_digest": "t"}
    assert whole_summary(recorded, lambda: folder) == {**recorded, "end_ids": [1], "rope_by_length": False}
    told = checkpoint_summary(folder)
    assert whole_summary(told, lambda: pytest.fail("nothing is missing")) == told
    assert whole_summary({}, lambda: folder) == told


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"rope_scaling": {"type": "longrope", "short_factor": [1.0]}}, True),
        ({"rope_scaling": {"type": "su"}}, True),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, True),
        ({"rope_parameters": {"full_attention": {"rope_type": "longrope"}, "sliding_attention": {}}}, True),
        ({"text_config": {"rope_scaling": {"rope_type": "dynamic"}}}, True),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, False),
        ({"rope_scaling": {"type": "yarn"}}, False),
        ({"rope_scaling": None, "rope_parameters": {"rope_type": "default"}}, False),
        ({}, False),
    ],
)
def test_rope_that_goes_by_length_is_known_by_its_kind(config: dict[str, Any], expected: bool) -> None:
    assert rope_by_length(config) is expected
