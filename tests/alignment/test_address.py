"""What opens an address is shown nowhere and recorded nowhere, and a URL that is signed anew is the same file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

from alignment.address import bare, handed_on, remember, shown, whole
from alignment.data.files import expand, modified, pin_file, size
from alignment.data.readers import read_records
from alignment.data.shards import shards_of
from alignment.errors import BadInput
from alignment.recipe import Judge, PreferenceSource, parse_recipe
from alignment.stages import SourceFile, execute
from alignment.stages.preference_shard import STAGE
from alignment.store import Store
from eval.suites.rows import read_rows
from tests.loopback import signed_files

SECRET = "s3cr/et%2F+"
WRONG = "wr0ng"
ROW = json.dumps({"prompt": "p", "chosen": "c", "rejected": "r"}).encode() + b"\n"


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with signed_files({".jsonl": ROW}, lambda signature: signature.startswith("s3cr")) as url:
        yield url


@pytest.mark.parametrize("text", ["a" * 200_000, "a." * 100_000, "a" * 200_000 + "://u:p@host", "a::" * 60_000])
def test_a_long_text_is_shown_within_seconds(text: str) -> None:
    began = time.process_time()
    assert "u:p" not in shown(text)
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    ("address", "is_shown"),
    [
        ("/data/day?.jsonl", "/data/day?.jsonl"),
        ("https://host:80/a/b@c.jsonl", None),
        ("https://host/a@b/c.jsonl", "https://host/a@b/c.jsonl"),
        ("https://u:p@host/a.jsonl?X-Amz-Signature=1/2&x=3", "https://host/a.jsonl"),
        ("https://host/a.jsonl?sig", "https://host/a.jsonl"),
        ("https://token@host/a.jsonl#access=1", "https://host/a.jsonl"),
        ("http://team:se@cret@127.0.0.1:9", "http://127.0.0.1:9"),
        ("s3://bucket/day-?.jsonl", "s3://bucket/day-?.jsonl"),
        ("s3://bucket/a.jsonl?versionId=1", "s3://bucket/a.jsonl"),
        ("abfs://container@account.dfs/a.jsonl", "abfs://container@account.dfs/a.jsonl"),
        ("zip://a.jsonl::https://u:p@host/a.zip?sig=1", "zip://a.jsonl::https://host/a.zip"),
        ("http://[::1]:5000/a.jsonl?sig=1", "http://[::1]:5000/a.jsonl"),
    ],
)
def test_an_address_is_named_and_shown_without_user_and_query(address: str, is_shown: str | None) -> None:
    if is_shown is not None:
        assert (bare(address), shown(address)) == (is_shown, is_shown)
    else:  # a port and an @ behind it read like a user and a password: shown without, and kept whole
        assert (bare(address), shown(address)) == (address, "https://c.jsonl")
    assert bare(bare(address)) == bare(address)


@pytest.mark.parametrize(
    ("text", "is_shown"),
    [
        ("postgresql://ml:pa/s?s@db:5432/x?password=s3cret", "postgresql://db:5432/x"),
        ("http://u:12/34@host", "http://host"),
        ("403, url='https://h/x?sig=a%2F', again", "403, url='https://h/x', again"),
        ("Max retries exceeded with url: /api/2.0?token=abc (Caused by x)", "with url: /api/2.0 (Caused by x)"),
        ("the token hf_abcdefghijklmnopqrstuvwxyz is invalid", "the token hf_… is invalid"),
        ("Why? Because.", "Why? Because."),
    ],
)
def test_a_text_shows_no_secret_of_an_address(text: str, is_shown: str) -> None:
    assert shown(text).endswith(is_shown)
    assert str(BadInput(text)).endswith(is_shown)


def test_a_url_signed_anew_is_the_same_shard_and_its_signature_is_in_no_file_of_the_store(
    bucket: str, tmp_path: Path
) -> None:
    store, requests = Store(str(tmp_path / "store"), cache=tmp_path / "cache"), []
    for day in (1, 2):
        source = PreferenceSource(files=[f"{bucket}/prefs.jsonl?signature={SECRET}{day}&day={day}"])
        shards = shards_of(source)
        assert list(shards) == ["prefs"]
        requests.append(shards["prefs"])
    assert requests[0] == requests[1]
    commit = execute(STAGE, requests[1], store)
    assert commit.summary["rows"] == 1
    assert json.loads(store.read(commit.artifact, "request.json"))["file"]["url"] == f"{bucket}/prefs.jsonl"
    for file in (file for file in tmp_path.rglob("*") if file.is_file()):
        assert b"s3cr" not in file.read_bytes(), file


def test_a_file_that_a_query_opens_is_read_by_every_reader(bucket: str) -> None:
    signed = f"{bucket}/a.jsonl?signature={SECRET}"
    assert expand(signed) == [f"{bucket}/a.jsonl"]
    pinned = pin_file(f"{bucket}/b.jsonl?signature={SECRET}")
    assert (pinned.url, pinned.size) == (f"{bucket}/b.jsonl", len(ROW))
    assert size(pinned.url) == len(ROW) and modified(pinned.url) is None
    assert [record.value["chosen"] for record in read_records(pinned.url, pinned.sha256)] == ["c"]
    assert [record.value["chosen"] for record in read_records(f"{bucket}/c.jsonl?signature={SECRET}")] == ["c"]
    assert read_rows(f"{bucket}/d.jsonl?signature={SECRET}")[0][1]["chosen"] == "c"


def test_no_error_of_reading_shows_a_query_or_stems_from_an_error_that_does(bucket: str) -> None:
    for number, read in enumerate((pin_file, expand, lambda url: list(read_records(url)), read_rows)):
        with pytest.raises(BadInput, match=f"refused{number}.jsonl") as refused:
            read(f"{bucket}/refused{number}.jsonl?signature={WRONG}")
        assert "out of date" in str(refused.value) or "403" in str(refused.value)
        assert WRONG not in "".join(traceback.format_exception(refused.value))


def test_two_files_that_a_query_alone_tells_apart_are_refused_by_name(bucket: str) -> None:
    urls = [f"{bucket}/a.jsonl?signature={SECRET}&part={part}" for part in (1, 2)]
    with pytest.raises(
        BadInput, match=r"a\.jsonl, field 'preferences\.files': is given twice, with two queries"
    ) as refused:
        shards_of(PreferenceSource(files=urls))
    assert "s3cr" not in str(refused.value)
    assert list(shards_of(PreferenceSource(files=[urls[0], urls[0]]))) == ["a"]


def test_a_request_of_an_older_version_is_read_without_its_query_and_opens_nothing_with_it() -> None:
    remember("https://host/a.jsonl?sig=new")
    old = SourceFile.model_validate({"url": "https://host/a.jsonl?sig=old", "sha256": "0" * 64, "size": 1})
    assert old.url == "https://host/a.jsonl"
    assert whole(old.url) == "https://host/a.jsonl?sig=new"


@pytest.mark.slow
def test_a_launched_process_is_handed_what_opens_its_files_by_environment(bucket: str, tmp_path: Path) -> None:
    request = shards_of(PreferenceSource(files=[f"{bucket}/e.jsonl?signature={SECRET}"]))["e"]
    given = handed_on(file.url for file in request.source_files())
    (tmp_path / "request.json").write_text(request.model_dump_json(), encoding="utf-8")
    command = [sys.executable, "-m", "alignment.stages", "preference_shard", "--request", "request.json"]
    for environment, code in (({}, 2), (given, 0)):
        ran = subprocess.run(
            command,
            cwd=tmp_path,
            env={**os.environ, "ALIGN_STORE": str(tmp_path / "store"), **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == code, ran.stderr
        assert "s3cr" not in ran.stdout + ran.stderr


def test_a_recipe_is_recorded_without_what_opens_its_addresses() -> None:
    data = {
        "name": "small",
        "base_model": {"embedded": "micro"},
        "sft": {"dataset": {"embedded": "micro"}},
        "preferences": {"files": ["https://u:p@host/a.jsonl?sig=s3cret"]},
    }
    recipe = parse_recipe(data, "-", {})
    assert recipe.preferences.files == ["https://u:p@host/a.jsonl?sig=s3cret"]
    assert recipe.written["preferences"] == {"files": ["https://host/a.jsonl"]}


@pytest.mark.parametrize("url", ["https://host/v1?key=s3cret", "ftp://host/v1?key=s3cret", "https://host/v1#s3cret"])
def test_a_query_in_an_endpoint_s_address_is_refused_and_not_repeated(url: str) -> None:
    data = {
        "name": "small",
        "base_model": {"embedded": "micro"},
        "sft": {"dataset": {"embedded": "micro"}},
        "preferences": {"embedded": "micro"},
    }
    for where in (
        {"judge": {"kind": "openai", "model": "m", "base_url": url}},
        {"evals": {"generate": {"kind": "endpoint", "base_url": url}}},
    ):
        with pytest.raises(BadInput, match="base_url must") as refused:
            parse_recipe({**data, **where}, "-", {})
        assert "s3cret" not in "".join(traceback.format_exception(refused.value))
    with pytest.raises(ValueError, match="base_url must") as raw:
        Judge(kind="openai", model="m", base_url=url)
    assert "s3cret" not in str(raw.value)
