"""Checking files says what a shard of them would hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignment.data.check import check_files, joined_note, show_rows
from alignment.data.files import pin_file
from alignment.data.rows import paired_row
from alignment.data.tokens import Tokenization
from alignment.errors import BadInput
from alignment.models.checkpoint import load_tokenizer
from alignment.recipe import TokenPolicy
from alignment.stages import execute
from alignment.stages.preference_shard import STAGE, ShardRequest
from alignment.store import Store
from tests.tiny import letter_tokenizer, write_model


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
        "texts": 2,
        "joined": checked["joined"],
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


def test_a_file_in_no_form_is_advised_once(tmp_path: Path) -> None:
    url = save(tmp_path / "a.jsonl", [{"question": f"q{n}", "good": "x", "bad": "y"} for n in range(30)])
    checked = check_files([url])
    assert checked["reasons"] == {"unknown form": 30}
    assert list(checked["advice"]) == [url]
    assert "{prompt: question, chosen: good, rejected: bad}" in checked["advice"][url]


def recipe_of(tmp_path: Path, model: Path, **preferences: Any) -> str:
    recipe = {
        "name": "mine",
        "base_model": {"path": str(model)},
        "sft": {"adopt": {"path": str(model)}},
        "preferences": preferences,
        "tokens": {"max_length": 12},
        "dpo": {"beta": 0.1},
    }
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = letter_tokenizer(template=CHAT)
    return write_model(folder, tokenizer)


CHAT = "{% for m in messages %}{{ '<s>' if loop.first else '' }}{{ m.role[0] }}>{{ m.content }}{% endfor %}"
COLUMNS = {"prompt": "question", "chosen": "good", "rejected": "bad", "system": "tone"}


def test_a_recipes_preferences_are_shown_as_its_model_will_see_them(tmp_path: Path, model: Path) -> None:
    rows = [{"question": "q", "good": answer, "bad": "y"} for answer in ("x", "xx", "x" * 20)]
    save(tmp_path / "a.jsonl", rows)
    recipe = recipe_of(tmp_path, model, files=[str(tmp_path / "a.jsonl")], columns=COLUMNS)
    assert check_files([recipe])["accepted"] == 3
    told = show_rows(recipe)
    json.dumps(told)
    assert [shown["row"] for shown in told["shown"]] == [1, 2, 3]
    seen = told["shown"][1]["seen"]["chosen"]
    assert (seen["prompt"], seen["counted"]) == ("<s>u>q", "a>xx</s>")
    tokenization = Tokenization(load_tokenizer(model), TokenPolicy(max_length=12))
    sides = tokenization.pair(
        paired_row(
            ({"role": "user", "content": "q"},),
            ({"role": "assistant", "content": "xx"},),
            ({"role": "assistant", "content": "y"},),
            "f",
            1,
        )
    )
    assert isinstance(sides, tuple)
    assert (seen["prompt_ids"], seen["counted_ids"]) == ([*sides[0].prompt_ids], [*sides[0].completion_ids])
    assert told["dropped"] == {"too long": 1} and told["truncated"] == 0
    assert told["shown"][2]["dropped"] == "too long"
    assert told["tokens"]["longer side"]["100"] == 4 + 2 + 20 + 1
    assert show_rows(recipe, max_length=64)["dropped"] == {}


def test_what_a_truncation_cuts_is_counted_by_row(tmp_path: Path, model: Path) -> None:
    records = [{"prompt": "q", "completion": "x" * n, "label": True} for n in (2, 30)]
    save(tmp_path / "a.jsonl", records)
    recipe = recipe_of(tmp_path, model, files=[str(tmp_path / "a.jsonl")])
    text = Path(recipe).read_text().replace("max_length: 12", "max_length: 12\n  truncation: keep_start")
    Path(recipe).write_text(text)
    told = show_rows(recipe, row=2)
    assert (told["truncated"], told["dropped"], told["tokens"]["completion"]["100"]) == (1, {}, 31)
    (shown,) = told["shown"]
    assert len(shown["seen"]["completion"]["counted_ids"]) == 10 and shown["label"] is True


def test_a_file_alone_is_shown_as_it_is_read(tmp_path: Path, model: Path) -> None:
    turns = [{"role": "user", "content": "p"}, {"role": "assistant", "content": "x"}, {"role": "user", "content": "q"}]
    record = {"prompt": turns, "chosen": "x", "rejected": "y", "chosen_score": 2, "rejected_score": 1}
    url = save(tmp_path / "a.jsonl", [record, {}])
    told = show_rows(url)
    (shown,) = told["shown"]
    assert shown["earlier_answers"] == 1 and shown["chosen_score"] == 2.0 and "seen" not in shown
    assert "tokens" not in told
    assert show_rows(url, model=str(model))["max_length"] == 128
    with pytest.raises(BadInput, match=r"a\.jsonl, row 2: gives no row: unknown form"):
        show_rows(url, row=2)
    with pytest.raises(BadInput, match=r"a\.jsonl, row 9: gives no row: no such record"):
        show_rows(url, row=9)
    with pytest.raises(BadInput, match=r"none: no such folder"):
        show_rows(url, model="none")
    with pytest.raises(BadInput, match=r"b\.jsonl: no valid row \(unknown form: 1\)"):
        show_rows(save(tmp_path / "b.jsonl", [{}]))


def test_a_recipe_that_takes_pairs_and_thumbs_together_is_checked_as_its_shards_are_made(tmp_path: Path) -> None:
    thumbs = [{"prompt": f"q{number}", "completion": "c", "label": bool(number % 2)} for number in range(3)]
    files = [save(tmp_path / "pairs.jsonl", [pair(1), pair(2)]), save(tmp_path / "thumbs.jsonl", thumbs)]
    embedded = {"embedded": "micro"}
    recipe = {"name": "r", "base_model": embedded, "sft": {"dataset": embedded}, "preferences": {"files": files}}
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(recipe | {"optimise": {"method": "kto"}}), encoding="utf-8")
    checked = check_files([str(path)])
    assert (checked["accepted"], checked["kind"], checked["reasons"]) == (7, "unpaired", {})
    assert show_rows(str(tmp_path / "pairs.jsonl"))["rows"] == 2


@pytest.mark.parametrize(
    ("prompt", "chosen", "joined"),
    [
        ("Tell a story.", "Once", 1),
        ("Tell a story. ", "Once", 0),
        ("Tell a story.\n", "Once", 0),
        ("Tell a story.", " Once", 0),
        ("讲一个故事", "从前", 0),
    ],
)
def test_plain_rows_with_nothing_between_prompt_and_answer_are_noted(
    prompt: str, chosen: str, joined: int, tmp_path: Path
) -> None:
    rejected = " No" if chosen.startswith(" ") else "No"
    checked = check_files([save(tmp_path / "a.jsonl", [{"prompt": prompt, "chosen": chosen, "rejected": rejected}])])
    assert (checked["texts"], checked["joined"]) == (1, joined)
    told = joined_note(checked)
    assert (told is not None) == bool(joined)
    assert told is None or told.startswith("1 row of plain text has nothing between prompt and answer")
