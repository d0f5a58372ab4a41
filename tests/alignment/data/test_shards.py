"""Shard names are short, distinct and the same in any order of files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from alignment.data import shards as shards_module
from alignment.data.files import pin_files
from alignment.data.shards import names_on_the_hub, shard_names, shards_of
from alignment.errors import BadInput
from alignment.recipe import DEFAULT_READING, PreferenceSource
from alignment.stages import SourceFile
from alignment.stages.preference_shard import STAGE, ShardRequest


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGN_HOME", str(tmp_path / "home"))


def save(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"prompt": path.name, "chosen": "c", "rejected": "r"}) + "\n", encoding="utf-8")
    return path


def test_a_file_is_a_shard_named_by_its_stem(tmp_path: Path) -> None:
    save(tmp_path / "monday.jsonl.gz")
    save(tmp_path / "tuesday.v2.json")
    save(tmp_path / "notes.txt")
    shards = shards_of(PreferenceSource(files=[str(tmp_path)]), seed=7)
    assert list(shards) == ["monday", "tuesday.v2"]
    assert all(request.file is not None and request.seed == 0 for request in shards.values())


def test_clashing_names_are_led_by_their_folder(tmp_path: Path) -> None:
    files = [save(tmp_path / folder / "pairs.jsonl") for folder in ("a", "b")]
    assert list(shards_of(PreferenceSource(files=[str(file) for file in files]))) == ["a-pairs", "b-pairs"]


def test_a_file_is_cut_into_numbered_shards(tmp_path: Path) -> None:
    file = save(tmp_path / "pairs.jsonl")
    shards = shards_of(PreferenceSource(files=[str(file)], split_into=3))
    assert list(shards) == [f"pairs-0000{number}-of-00003" for number in (1, 2, 3)]
    assert [(request.part, request.parts) for request in shards.values()] == [(0, 3), (1, 3), (2, 3)]


def test_embedded_shards_are_days_of_the_recipes_seed() -> None:
    shards = shards_of(PreferenceSource(embedded="micro"), seed=5)
    assert list(shards) == ["day-1", "day-2", "day-3"]
    assert [(request.embedded, request.part, request.seed) for request in shards.values()] == [
        ("micro", day, 5) for day in range(3)
    ]


def test_a_hub_split_pinned_to_a_commit_needs_no_network_and_keeps_its_key_as_json() -> None:
    source = PreferenceSource(hub="team/prefs", revision="a" * 40, split="test[:10%]", split_into=2)
    shards = shards_of(source)
    assert list(shards) == ["test-10-00001-of-00002", "test-10-00002-of-00002"]
    for request in shards.values():
        assert STAGE.key(ShardRequest.model_validate_json(request.model_dump_json())) == STAGE.key(request)


def test_no_file_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no file"):
        shards_of(PreferenceSource(files=[]))
    with pytest.raises(BadInput, match="matches no file"):
        shards_of(PreferenceSource(files=[str(tmp_path / "*.jsonl")]))


def test_names_need_no_file_read_and_a_file_is_pinned_once_for_all_its_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned: list[str] = []

    def pin(url: str) -> SourceFile:
        pinned.append(Path(url).name)
        return SourceFile(url=url, sha256="0" * 64, size=1)

    monkeypatch.setattr(shards_module, "pin_file", pin)
    for name in ("a", "b"):
        save(tmp_path / f"{name}.jsonl")
    shards = shards_of(PreferenceSource(files=[str(tmp_path)], split_into=2))
    assert len(shards) == 4
    assert "a-00001-of-00002" in shards
    assert pinned == []
    assert [shards[name].part for name in list(shards)[2:]] == [0, 1]
    assert pinned == ["b.jsonl"]


@pytest.mark.parametrize("parts", [1, 3])
def test_a_name_too_long_for_a_file_ends_in_its_digest_and_a_shorter_one_stays(tmp_path: Path, parts: int) -> None:
    files = [save(tmp_path / f"{name}.jsonl") for name in ("長" * 80, "長" * 79 + "い", "a" * 226, "長" * 25)]
    shards = shards_of(PreferenceSource(files=[str(file) for file in files], split_into=parts))
    names = [name for name in shards if parts == 1 or name.endswith("-00001-of-00003")]
    assert len(set(shards)) == 4 * parts
    assert all(len(quote(name, safe="")) + len(".json.12345678") <= 255 for name in shards)
    assert [name.removesuffix("-00001-of-00003") for name in names[2:]] == ["a" * 226, "長" * 25]
    assert all(re.fullmatch(r"長{21,25}-[0-9a-f]{10}(-00001-of-00003)?", name) for name in names[:2])
    assert next(iter(shards_of(PreferenceSource(files=[str(files[0])], split_into=parts)))) == names[0]


part = st.text("ab .é-", min_size=1, max_size=3).filter(lambda text: bool(text.strip(". ")))
url = st.builds(
    lambda folders, stem, suffix: "/" + "/".join([*folders, stem + suffix]),
    st.lists(part, max_size=3),
    part,
    st.sampled_from([".jsonl", ".json", ".jsonl.gz", ".csv"]),
)


@given(urls=st.lists(url, min_size=1, max_size=8, unique=True))
def test_names_are_distinct_fit_a_file_name_and_do_not_depend_on_order(urls: list[str]) -> None:
    names = shard_names(urls)
    assert len(set(names)) == len(names)
    assert not any("/" in name or ".." in name or " " in name or not name for name in names)
    assert dict(zip(urls, names, strict=True)) == dict(zip(urls[::-1], shard_names(urls[::-1]), strict=True))


# LLaMA-Factory's folders ------------------------------------------------------------------------


def llama_factory(folder: Path, info: dict[str, object]) -> dict[str, ShardRequest]:
    (folder / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    return dict(shards_of(PreferenceSource(files=[str(folder)])))


def test_a_folder_with_dataset_info_gives_the_files_that_it_calls_preferences(tmp_path: Path) -> None:
    for name in ("pairs", "thumbs", "sft"):
        save(tmp_path / f"{name}.json")
    plain = dict(shards_of(PreferenceSource(files=[str(tmp_path / "pairs.json")])))
    info: dict[str, object] = {
        "mine": {
            "file_name": "pairs.json",
            "ranking": True,
            "formatting": "sharegpt",
            "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"},
        },
        "kto": {"file_name": "thumbs.json", "formatting": "sharegpt", "columns": {"kto_tag": "label"}},
        "text": {"file_name": "sft.json"},
        "far": {"hf_hub_url": "x/y", "ranking": True},
    }
    shards = llama_factory(tmp_path, info)
    assert list(shards) == ["pairs", "thumbs"]
    assert [Path(file.url).name for file in pin_files([str(tmp_path)], "demonstrations")] == ["sft.json"]
    assert len(pin_files([str(tmp_path)])) == 3
    assert STAGE.key(shards["pairs"]) == STAGE.key(plain["pairs"])  # names that are read anyway make no other shard
    assert list(llama_factory(tmp_path, {"text": {"file_name": "sft.json"}})) == ["pairs", "sft", "thumbs"]
    assert list(shards_of(PreferenceSource(files=[str(tmp_path / "*.json")]))) == ["pairs", "sft", "thumbs"]
    assert list(llama_factory(tmp_path, {"features": {"dtype": "string"}})) == [
        "pairs",
        "sft",
        "thumbs",
    ]  # Hugging Face's


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "[broken",
            r"dataset_info\.json, field 'preferences\.files': not readable as JSON: .*; mend it or move it elsewhere",
        ),
        ('{"x": {"file_name": [], "ranking": true}}', r"dataset_info\.json, field 'x\.file_name': must be a text"),
        ('{"x": {"file_name": "a.json", "columns": 3}}', r"field 'x\.columns': must be a mapping of names to names"),
        ('{"x": {"file_name": "a.json", "tags": "role"}}', r"field 'x\.tags': must be a mapping of names to names"),
    ],
)
def test_a_dataset_info_that_cannot_be_read_is_refused_and_no_other_file_taken(
    tmp_path: Path, text: str, told: str
) -> None:
    save(tmp_path / "sft.json")
    (tmp_path / "dataset_info.json").write_text(text, encoding="utf-8")
    with pytest.raises(BadInput, match=told):
        shards_of(PreferenceSource(files=[str(tmp_path)]))


def test_columns_of_dataset_info_are_read_unless_the_recipe_names_its_own(tmp_path: Path) -> None:
    file = tmp_path / "rlaif.json"
    file.write_text(json.dumps([{"question": "q", "good": "c", "bad": "r"}]), encoding="utf-8")
    columns = {"prompt": "question", "chosen": "good", "rejected": "bad", "system": None}
    shards = llama_factory(tmp_path, {"x": {"file_name": "rlaif.json", "ranking": True, "columns": columns}})
    assert shards["rlaif"].reading.columns == {"instruction": "question", "chosen": "good", "rejected": "bad"}
    own = PreferenceSource(files=[str(tmp_path)], columns={"prompt": "question", "chosen": "bad", "rejected": "good"})
    assert shards_of(own)["rlaif"].reading == own.reading()
    tags = {"role_tag": "speaker", "content_tag": "content"}
    info: dict[str, object] = {"x": {"file_name": "rlaif.json", "ranking": True, "columns": columns, "tags": tags}}
    with pytest.raises(BadInput, match=r"dataset_info\.json, field 'x\.tags\.role_tag': calls .*'speaker'"):
        llama_factory(tmp_path, info)["rlaif"]


def test_how_records_are_read_is_in_the_key_only_where_it_is_not_the_default(tmp_path: Path) -> None:
    file = str(save(tmp_path / "a.jsonl"))

    def request(**settings: object) -> ShardRequest:
        return shards_of(PreferenceSource.model_validate({"files": [file], **settings}), seed=3)["a"]

    bare = request()
    assert bare.reading == DEFAULT_READING and "reading" not in bare.identity() and bare.seed == 0
    assert "reading" not in json.loads(bare.model_dump_json())
    assert STAGE.key(request(license="MIT", pairing="best_worst")) == STAGE.key(bare)
    others = [request(pairing="all"), request(min_score_gap=1), request(max_rows=5), request(labels={"up": True})]
    assert len({STAGE.key(one) for one in (bare, *others)}) == 5
    assert [one.seed for one in others] == [0, 0, 3, 0]
    assert ShardRequest.model_validate_json(others[0].model_dump_json()) == others[0]


# Several sources --------------------------------------------------------------------------------


def test_several_sources_lead_their_shards_by_name_and_read_in_their_own_way(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        save(tmp_path / folder / "pairs.jsonl")
    written = [
        {"name": "web", "files": [str(tmp_path / "a")], "license": "MIT", "columns": {"prompt": "question"}},
        {"name": "own", "files": [str(tmp_path / "b" / "*.jsonl")], "split_into": 2, "max_rows": 5},
        {"name": "made", "embedded": "micro"},
    ]
    source = PreferenceSource.model_validate(written)
    assert source == PreferenceSource.model_validate({"sources": written})
    shards = shards_of(source, seed=3)
    cut = [f"own-pairs-0000{number}-of-00002" for number in (1, 2)]
    assert list(shards) == ["web-pairs", *cut, "made-day-1", "made-day-2", "made-day-3"]
    assert (shards["web-pairs"].reading.columns, shards["web-pairs"].seed) == ({"prompt": "question"}, 0)
    assert (shards[cut[1]].reading.max_rows, shards[cut[1]].seed, shards[cut[1]].part) == (5, 3, 1)
    assert shards["made-day-1"].embedded == "micro"
    assert source.file_patterns == [str(tmp_path / "a"), str(tmp_path / "b" / "*.jsonl")]
    hub = PreferenceSource.model_validate([written[0], {"name": "far", "hub": "x/y", "split": "train_prefs"}])
    assert names_on_the_hub(hub) == ["web-pairs", "far-train_prefs"]


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ({"sources": [{"name": "a", "files": ["x"]}], "split_into": 2}, "split_into: give it in each of the sources"),
        ({"sources": [{"name": "a", "files": ["x"]}], "files": ["y"]}, "files: give it in each of the sources"),
        ([{"name": "a", "files": ["x"]}, {"name": "a", "files": ["y"]}], "two sources are called a"),
        ([{"files": ["x"]}], "Field required"),
        ([{"name": "A-b", "files": ["x"]}], "should match pattern"),
        ([{"name": "a"}], "give exactly one of files, hub, embedded"),
        ([], "give exactly one of files, hub, embedded"),
        ({"columns": {"promt": "x"}, "files": ["x"]}, "should be 'prompt'"),
    ],
)
def test_sources_that_cannot_be_are_refused(written: object, problem: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(problem)):
        PreferenceSource.model_validate(written)
