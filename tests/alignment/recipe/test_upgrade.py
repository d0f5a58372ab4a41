"""`align recipes upgrade`: the older spelling is rewritten in the text, and nothing else of the file changes."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignment.errors import BadInput
from alignment.recipe import load_recipe
from alignment.recipe.upgrade import upgraded, write_whole

START = """\
# a recipe
name: small
base_model: {embedded: micro}
sft: &shared # what both share
  dataset: {embedded: micro}
preferences: {embedded: micro}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_bytes((START + text).encode())
        return path

    return write


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("dpo: # kept\n  beta: 0.2 # too\n", "optimise: # kept\n  beta: 0.2 # too\n"),
        (
            "dpo:\n  # dpo: and loss: stay here\n  loss: sigmoid\n",
            "optimise:\n  # dpo: and loss: stay here\n  method: dpo\n",
        ),
        ('"dpo": {"loss": "ipo", beta: 0.2}', '"optimise": {"method": "ipo", beta: 0.2}'),
        ("dpo: {loss: 'robust', label_smoothing: 0.1}\n", "optimise: {method: 'robust_dpo', label_smoothing: 0.1}\n"),
        (
            "dpo:\n    loss: sigmoid_norm # per token\n    beta: 5\nseed: 3\n",
            "optimise:\n    method: dpo # per token\n    length_normalised: true\n    beta: 5\nseed: 3\n",
        ),
        ("dpo:\n  beta: 5\n  loss: sigmoid_norm", "optimise:\n  beta: 5\n  method: dpo\n  length_normalised: true"),
        (
            "dpo: {loss: sigmoid_norm, beta: 5}\n",
            "optimise: {method: dpo, length_normalised: true, beta: 5}\n",
        ),
        ("dpo:\n  loss:\n    hinge\n", "optimise:\n  method:\n    hinge\n"),
        ("dpo: &d {loss: sigmoid, beta: 0.2}\n", "optimise: &d {method: dpo, beta: 0.2}\n"),
        ("dpo:\n  loss: &m ipo\n", "optimise:\n  method: &m ipo\n"),
        ("dpo: {}\n", "optimise: {}\n"),
        (
            "dpo:\r\n  loss: sigmoid_norm\r\n  beta: 5\r\n",
            "optimise:\r\n  method: dpo\r\n  length_normalised: true\r\n  beta: 5\r\n",
        ),
        ("optimise: {method: ipo}\n", "optimise: {method: ipo}\n"),
        ("seed: 3 # without either\n", "seed: 3 # without either\n"),
    ],
)
def test_only_the_spelling_changes(recipe: Callable[[str], Path], old: str, new: str) -> None:
    path = recipe(old)
    before = load_recipe(path)
    text, result = upgraded(path)
    assert text == START + old and result == START + new
    path.write_bytes(result.encode())
    after = load_recipe(path)
    assert (after.dpo, after.method, after.sft) == (before.dpo, before.method, before.sft)
    assert after.training.called.startswith("method: ")
    assert upgraded(path) == (result, result), "nothing is left to rewrite"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "dpo: {loss: '${LOSS:-sigmoid}'}\n",
            "field 'dpo': cannot be rewritten in place: loss is ${LOSS:-sigmoid}",
        ),
        ("dpo: {loss: !!str sigmoid}\n", "sigmoid is written as !!str sigmoid; write it plainly"),
        ("description: &l sigmoid\ndpo: {loss: *l}\n", "loss is an alias (*); write the method's name"),
        ("dpo: {<<: {loss: ipo}, beta: 0.1}\n", "loss comes from a merged mapping (<<); write it out"),
        (
            "dpo: {length_normalised: true}\n",
            "cannot be rewritten: the result would train with loss: sigmoid_norm, and the recipe has loss: sigmoid",
        ),
        (
            "dpo: {gamma_ratio: 0.5}\n",
            "field 'optimise': cannot be rewritten, as the result would be refused: gamma_ratio counts only with",
        ),
        ("dpo: {loss: sigmod}\n", "there is no 'sigmod'; did you mean sigmoid?"),
        ("dpo: {beta: 0.1}\noptimise: {beta: 0.1}\n", "two spellings of one section"),
    ],
)
def test_what_cannot_be_rewritten_is_refused_in_one_line(recipe: Callable[[str], Path], text: str, told: str) -> None:
    path = recipe(text)
    with pytest.raises(BadInput) as refused:
        upgraded(path)
    assert told in str(refused.value) and str(path) in str(refused.value) and "\n" not in str(refused.value)


def test_an_alias_of_an_unchanged_name_stays(recipe: Callable[[str], Path]) -> None:
    assert upgraded(recipe("description: &l ipo\ndpo: {loss: *l}\n"))[1].endswith("optimise: {method: *l}\n")


def test_the_command_shows_writes_and_says_what_it_did(
    recipe: Callable[[str], Path], tmp_path: Path, align: Callable[..., tuple[int, dict[str, Any], str]]
) -> None:
    path, pools = recipe("dpo: {loss: sigmoid}\n"), tmp_path / "pools.yaml"
    pools.write_text("pools: {local: {slots: 1}}")
    old = path.read_text()
    code, shown, error = align("recipes", "upgrade", str(path), str(pools), "--dry-run")
    (change,) = shown["recipes"]
    assert (code, change["changed"], change["written"], path.read_text()) == (0, True, None, old), error
    assert "-dpo: {loss: sigmoid}" in change["diff"] and "+optimise: {method: dpo}" in change["diff"]

    code, shown, error = align("recipes", "upgrade", str(path), "--out", str(tmp_path / "new.yaml"))
    assert code == 0 and path.read_text() == old, error
    assert (tmp_path / "new.yaml").read_text() == START + "optimise: {method: dpo}\n"
    assert json.dumps(shown).count("new.yaml") == 2

    code, shown, error = align("recipes", "upgrade", str(path))
    assert (code, shown["recipes"][0]["written"]) == (0, str(path)), error
    assert path.read_text() == START + "optimise: {method: dpo}\n"
    code, shown, error = align("recipes", "upgrade", str(path))
    assert (code, shown["recipes"][0]["changed"], shown["recipes"][0]["written"]) == (0, False, None), error

    other = tmp_path / "other.yaml"
    other.write_text(old + "seed: [")
    code, _, error = align("recipes", "upgrade", str(path), str(other))
    assert code == 2 and f"{other}, row " in error and len(error.splitlines()) == 1
    code, _, error = align("recipes", "upgrade", str(path), str(path), "--out", str(other))
    assert code == 2 and "field '--out': takes one recipe at a time" in error


def test_no_file_is_written_where_one_of_several_is_refused(
    recipe: Callable[[str], Path], tmp_path: Path, align: Callable[..., tuple[int, dict[str, Any], str]]
) -> None:
    path, bad = recipe("dpo: {loss: sigmoid}\n"), tmp_path / "bad.yaml"
    bad.write_text(START + "dpo: {gamma_ratio: 0.5}\n")
    code, _, error = align("recipes", "upgrade", str(path), str(bad))
    assert code == 2 and str(bad) in error and "dpo: {loss: sigmoid}" in path.read_text()


def test_a_file_is_replaced_whole_with_its_permissions_and_behind_its_link(tmp_path: Path) -> None:
    path, link = tmp_path / "real.yaml", tmp_path / "link.yaml"
    path.write_text("old")
    path.chmod(0o640)
    link.symlink_to(path)
    write_whole(link, "new\r\n")
    assert path.read_bytes() == b"new\r\n" and link.is_symlink() and stat.S_IMODE(path.stat().st_mode) == 0o640
    assert sorted(tmp_path.iterdir()) == [link, path], "nothing is left beside it"
    with pytest.raises(BadInput, match=r"none.new\.yaml: cannot be written: No such file"):
        write_whole(tmp_path / "none" / "new.yaml", "new")
