"""YAML as people mean it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from alignment.errors import BadInput
from alignment.recipe.load import read_yaml, yaml_value


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "file.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: 1\nb: {c: 1, c: 2}\n", "row 2: malformed YAML: key 'c' appears twice"),
        ("name: x\nname: y\n", "row 2: malformed YAML: key 'name' appears twice"),
        ("a: 1\nseed: 2024-13-45\n", "row 2: malformed YAML: no date is written as '2024-13-45'; put a text in quotes"),
        ("a: 1\nseed: " + "9" * 5000, "row 2: malformed YAML: no number is written as '9999"),
        ("a: " + "[" * 5000, "malformed YAML"),
        ('a: 1\nb: "\\uD800"\n', "row 2: malformed YAML: half of a surrogate pair, which is not a character"),
        ("a: [1", "malformed YAML"),
        ("- a\n", "a recipe is a mapping"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, text: str | bytes, told: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(BadInput) as caught:
        read_yaml(path, "recipe")
    assert told in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["[" * 5000, "&a [*a]", "2026-13-45", "9" * 5000])
def test_a_value_alone_is_refused_for_the_same_reasons(text: str) -> None:
    with pytest.raises(yaml.YAMLError):
        yaml_value(text)


def test_a_merged_key_may_be_overridden(tmp_path: Path) -> None:
    text = "base: &base {memory: 1, cpu: 2}\nother:\n  <<: *base\n  memory: 3\n"
    assert read_yaml(written(tmp_path, text), "pools file")["other"] == {"memory": 3, "cpu": 2}


def test_a_folder_in_place_of_a_file_is_called_one(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is a folder, not a recipe"):
        read_yaml(tmp_path, "recipe")
