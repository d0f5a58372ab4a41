from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from alignment.data.rows import paired_row, unpaired_row, write_rows
from alignment.data.tokens import SIDES_EQUAL, Tokenization
from alignment.data.writing import PROMPT_REWRITTEN
from alignment.digest import json_digest
from alignment.errors import BadInput
from alignment.logprobs import reference
from alignment.models.checkpoint import load_tokenizer
from alignment.recipe import TokenPolicy
from alignment.stages import execute
from alignment.stages.reference_logprobs import STAGE, ReferenceRequest
from alignment.store import Artifact, Commit, Store
from eval.answers.files import read_responses
from eval.stages.responses import STAGE as RESPONSES
from eval.stages.responses import ResponsesRequest
from eval.suites import SuiteSpec
from tests.tiny import byte_tokenizer, write_model

Make = Callable[..., Path]
CommitModel = Callable[[Store, Path], Artifact]
CommitShard = Callable[[Store, list[tuple[str, str, str]]], Artifact]
Oracle = Callable[[Path, str, str], tuple[float, int]]
Texts = list[tuple[str, str, str]]


def request(checkpoint: Artifact, shard: Artifact, max_length: int = 128, **other: Any) -> ReferenceRequest:
    settings: dict[str, Any] = {"precision": "float32", "batch_tokens": 400} | other
    return ReferenceRequest(checkpoint=checkpoint, shard=shard, tokens=TokenPolicy(max_length=max_length), **settings)


def table(store: Store, commit: Commit, name: str = "logprobs.parquet") -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(store.fetch(commit.artifact) / name).to_pylist()
    return rows


def assert_same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """The same rows with the same keys; log-probs to a relative 1e-6."""
    for one, other in zip(found, expected, strict=True):
        for name, value in one.items():
            assert value == (pytest.approx(other[name], rel=1e-6) if isinstance(value, float) else other[name])


def forget_artifacts(store: Store) -> None:
    """Leaves the caches and takes the artifacts of this stage away, so that the stage runs again."""
    store.remove_folder(store.path(STAGE.kind))


@pytest.mark.parametrize(("family", "bos"), [("llama", True), ("qwen2", False), ("gemma2", True)])
def test_log_probs_are_those_of_the_oracle_in_the_shards_order(
    make_model: Make,
    commit_model: CommitModel,
    commit_shard: CommitShard,
    oracle: Oracle,
    store: Store,
    texts: Texts,
    family: str,
    bos: bool,
) -> None:
    texts = [("", "an empty prompt", "x"), ("one token: ", "y", ""), *texts]
    folder = make_model(family, bos=bos)
    commit = execute(STAGE, request(commit_model(store, folder), commit_shard(store, texts)), store)
    found = table(store, commit)
    assert len(found) == len(texts) == commit.summary["rows"]
    for row, (prompt, chosen, rejected) in zip(found, texts, strict=True):
        for side, completion in (("chosen", chosen), ("rejected", rejected)):
            logp, tokens = oracle(folder, prompt, completion)
            assert row[f"{side}_logp"] == pytest.approx(logp, rel=1e-6)
            assert row[f"{side}_tokens"] == tokens


def test_a_second_run_loads_no_model_and_tokenises_nothing(
    make_model: Make,
    commit_model: CommitModel,
    commit_shard: CommitShard,
    store: Store,
    texts: Texts,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = request(commit_model(store, make_model()), commit_shard(store, texts))
    first = execute(STAGE, asked, store)
    rows = table(store, first)
    forget_artifacts(store)
    reference.release_model()
    for name in ("load_model", "load_tokenizer"):
        monkeypatch.setattr(reference, name, lambda *_: pytest.fail("nothing is to be loaded"))
    second = execute(STAGE, asked, store)
    assert table(store, second) == rows
    assert second.digest == first.digest
    assert (first.summary["cache_hits"], first.summary["scored"]) == (0, 48)
    assert (second.summary["cache_hits"], second.summary["scored"], second.summary["tokens"]) == (48, 0, 0)


def test_a_changed_row_forwards_its_sequences_and_no_other(
    make_model: Make,
    commit_model: CommitModel,
    commit_shard: CommitShard,
    store: Store,
    texts: Texts,
    forwarded: Any,
) -> None:
    checkpoint = commit_model(store, make_model())
    first = execute(STAGE, request(checkpoint, commit_shard(store, texts)), store)
    assert len(forwarded.lengths) == 48
    assert first.summary["tokens"] == sum(len(f"<{text[0]}{side}>".encode()) for text in texts for side in text[1:])
    forwarded.lengths.clear()
    prompt, chosen, _ = texts[5]
    changed = [*texts[:5], (prompt, chosen, " another answer"), *texts[6:]]
    commit = execute(STAGE, request(checkpoint, commit_shard(store, changed)), store)
    assert forwarded.lengths == [len(f"<{prompt} another answer>".encode())]  # BOS and EOS
    assert (commit.summary["sequences"], commit.summary["scored"]) == (48, 1)
    before = {row["row_id"]: row for row in table(store, first)}
    assert sum(before.get(row["row_id"]) == row for row in table(store, commit)) == 23


def test_rows_moved_between_shards_are_hits(
    make_model: Make, commit_model: CommitModel, commit_shard: CommitShard, store: Store, texts: Texts, forwarded: Any
) -> None:
    checkpoint = commit_model(store, make_model())
    for shard in (texts[:12], texts[12:]):
        execute(STAGE, request(checkpoint, commit_shard(store, shard)), store)
    forwarded.lengths.clear()
    execute(STAGE, request(checkpoint, commit_shard(store, texts[::-1])), store)
    assert forwarded.lengths == []


def test_another_limit_that_cuts_nothing_tokenises_again_and_scores_nothing(
    make_model: Make, commit_model: CommitModel, commit_shard: CommitShard, store: Store, texts: Texts, forwarded: Any
) -> None:
    checkpoint, shard = commit_model(store, make_model()), commit_shard(store, texts)
    one = execute(STAGE, request(checkpoint, shard, max_length=128), store)
    forwarded.lengths.clear()
    other = execute(STAGE, request(checkpoint, shard, max_length=127), store)
    assert forwarded.lengths == []
    assert other.digest == one.digest


def test_batch_tokens_are_in_no_key(
    make_model: Make, commit_model: CommitModel, commit_shard: CommitShard, store: Store, texts: Texts
) -> None:
    checkpoint, shard = commit_model(store, make_model()), commit_shard(store, texts)
    assert STAGE.key(request(checkpoint, shard)) == STAGE.key(request(checkpoint, shard, batch_tokens=9))


def test_a_row_is_tokenised_once_for_all_references_with_one_tokenizer(
    make_model: Make,
    commit_model: CommitModel,
    commit_shard: CommitShard,
    store: Store,
    texts: Texts,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pairs, tokenised = Tokenization.pairs, []

    def counted(self: Tokenization, rows: Sequence[Any]) -> list[Any]:
        tokenised.extend(row.row_id for row in rows)
        return list(pairs(self, rows))

    monkeypatch.setattr(Tokenization, "pairs", counted)
    one, other = (commit_model(store, make_model(seed=seed)) for seed in (0, 1))
    shards = [commit_shard(store, texts), commit_shard(store, [*texts[3:], ("new", " yes", " no")])]
    found = [execute(STAGE, request(model, shard), store) for model in (one, other) for shard in shards]
    assert len(tokenised) == len(set(tokenised)) == len(texts) + 1
    elsewhere = Store(str(Path(store.root) / "elsewhere"))
    alone = execute(
        STAGE, request(commit_model(elsewhere, make_model(seed=1)), commit_shard(elsewhere, texts)), elsewhere
    )
    assert alone.digest == found[2].digest
    assert_same(table(store, found[2]), table(elsewhere, alone))
    short = commit_model(store, make_model("gpt2"))  # the same tokenizer, and ids that are known
    with pytest.raises(BadInput, match=r"tokens\.max_length"):
        execute(STAGE, request(short, shards[0], max_length=129), store)


def test_a_mended_end_id_answers_anew_and_scores_nothing_again(
    make_model: Make, commit_model: CommitModel, commit_shard: CommitShard, store: Store, texts: Texts, forwarded: Any
) -> None:
    folder, shard = make_model(), commit_shard(store, texts)
    checkpoints = [commit_model(store, folder)]
    first = execute(STAGE, request(checkpoints[0], shard), store)
    settings, tokenizer = folder / "generation_config.json", load_tokenizer(folder)
    # a completion that ended with one of them would be another sequence
    last = {tokenizer(side)["input_ids"][-1] for _, *sides in texts for side in sides}
    ends = sorted(set(range(2, 258, 2)) - last)
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"eos_token_id": ends}))
    checkpoints.append(commit_model(store, folder))
    before, after = (store.commit_of(checkpoint) for checkpoint in checkpoints)
    assert before.digest != after.digest
    assert (before.summary["end_ids"], sorted(after.summary["end_ids"])) == ([1], sorted({1, *ends}))
    forwarded.lengths.clear()
    second = execute(STAGE, request(checkpoints[1], shard), store)
    assert forwarded.lengths == []
    assert (second.summary["scored"], second.digest) == (0, first.digest)
    suites = {"gsm8k": SuiteSpec(name="gsm8k", embedded="micro", limit=3, max_new_tokens=12)}
    asked = [
        ResponsesRequest(checkpoint=one, suites=suites, seed=0, precision="float32", batch_tokens=400)
        for one in checkpoints
    ]
    assert RESPONSES.key(asked[0]) != RESPONSES.key(asked[1])
    answers = [execute(RESPONSES, one, store) for one in asked]
    texts_of = [read_responses(store.fetch(one.artifact) / "gsm8k" / "responses.jsonl") for one in answers]
    assert max(len(one.turns[0]) for one in texts_of[1]) < min(len(one.turns[0]) for one in texts_of[0])


def test_another_model_or_precision_is_another_reference(
    make_model: Make, commit_model: CommitModel, commit_shard: CommitShard, store: Store, texts: Texts
) -> None:
    shard = commit_shard(store, texts)
    one, other = (commit_model(store, make_model(seed=seed)) for seed in (0, 1))
    asked = [request(one, shard), request(other, shard), request(one, shard, precision="bfloat16")]
    commits = [execute(STAGE, each, store) for each in asked]
    assert [commit.summary["scored"] for commit in commits] == [48, 48, 48]
    assert len({commit.summary["fingerprint"] for commit in commits}) == 3
    assert len({commit.digest for commit in commits}) == 3


def test_rows_too_long_are_dropped_by_name_and_every_row_is_accounted_for(
    make_model: Make, commit_model: CommitModel, commit_shard: CommitShard, store: Store, texts: Texts
) -> None:
    fits = [max(len(f"<{prompt}{side}>".encode()) for side in sides) <= 40 for prompt, *sides in texts]
    assert 0 < sum(fits) < len(fits)
    asked = request(commit_model(store, make_model()), commit_shard(store, texts), max_length=40)
    for _ in range(2):  # tokenised, then remembered
        commit = execute(STAGE, asked, store)
        assert commit.summary["dropped"] == {"too long": fits.count(False)}
        assert commit.summary["rows"] == len(table(store, commit)) == sum(fits)
        dropped = table(store, commit, "dropped.parquet")
        assert [row["reason"] for row in dropped] == ["too long"] * fits.count(False)
        forget_artifacts(store)


CHATML = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
DATED = "{{ strftime_now('%d %b %Y') }}" + CHATML
SYSTEM_LAST = (
    "{% if messages[0].role == 'system' and messages[-1].role == 'user' %}{{ messages[0].content }}{% endif %}"
    "{% for m in messages if m.role != 'system' %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
)
"""Like Mistral's: the system message is there until an answer follows."""


def chat_model(folder: Path, template: str) -> Path:
    return write_model(folder, byte_tokenizer(bos="put", template=template), "llama")


def chat_shard(store: Store, pairs: list[tuple[str, str, str]], system: int = 0) -> Artifact:
    """A shard of one-turn conversations, the first `system` of them with a system message."""
    rows = []
    for number, (prompt, *sides) in enumerate(pairs):
        asked: tuple[dict[str, str], ...] = ({"role": "user", "content": prompt},)
        if number < system:
            asked = ({"role": "system", "content": "Be kind."}, *asked)
        chosen, rejected = (({"role": "assistant", "content": side},) for side in sides)
        rows.append(paired_row(asked, chosen, rejected, "f", number + 1))
    key = json_digest([row.row_id for row in rows])
    attempt = store.begin("preference_shard", key)
    write_rows(attempt.path / "rows.parquet", rows)
    fields: dict[str, Any] = {"stage": "s", "code_version": 1, "inputs": {}, "summary": {}, "environment": {}}
    return store.commit(attempt, digest=key, started_at="", seconds=0.0, **fields).artifact


def policy(**settings: Any) -> TokenPolicy:
    return TokenPolicy.model_validate({"max_length": 128, **settings})


def test_a_template_that_asks_for_the_date_gives_the_same_keys_on_every_day(
    commit_model: CommitModel, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = commit_model(store, chat_model(tmp_path / "dated", DATED))
    shard = chat_shard(store, [("a", "b", "c"), ("d", "e", "f")])

    def keys(day: int, **tokens: Any) -> list[str]:
        class Clock(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> Any:
                return datetime(2026, 3, day)

        monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Clock)
        commit = execute(STAGE, request(checkpoint, shard).model_copy(update={"tokens": policy(**tokens)}), store)
        found = [row["chosen_key"] for row in table(store, commit)]
        forget_artifacts(store)
        shutil.rmtree(store.path("cache"))
        return found

    first = keys(1)
    assert keys(2) == first
    assert keys(2, today="2024-07-27") != first


def test_the_date_rescores_nothing_under_a_template_that_does_not_ask_for_it(
    commit_model: CommitModel, store: Store, tmp_path: Path, forwarded: Any
) -> None:
    checkpoint = commit_model(store, chat_model(tmp_path / "plain", CHATML))
    asked = request(checkpoint, chat_shard(store, [("a", "b", "c")]))
    execute(STAGE, asked, store)
    forwarded.lengths.clear()
    monday = asked.model_copy(update={"tokens": policy(today="2024-07-29")})
    assert execute(STAGE, monday, store).summary["cache_hits"] == 2
    assert not forwarded.lengths


def test_a_shard_whose_prompts_the_template_rewrites_stops_with_the_remedy_in_one_line(
    commit_model: CommitModel, store: Store, tmp_path: Path
) -> None:
    checkpoint = commit_model(store, chat_model(tmp_path / "mistral", SYSTEM_LAST))
    shard = chat_shard(store, [(f"q{n}", f"a{n}", f"b{n}") for n in range(20)], system=2)

    def run(**settings: Any) -> dict[str, Any]:
        asked = request(checkpoint, shard).model_copy(update={"tokens": policy(**settings)})
        return execute(STAGE, asked, store).summary

    with pytest.raises(BadInput, match=r"tokens\.system.*checkpoint \w{12}.*2 of 20 rows \(10\.0%\).*first_user"):
        run()
    assert run(max_dropped=0.1)["dropped"] == {PROMPT_REWRITTEN: 2}
    with pytest.raises(BadInput, match="2 of 20 rows"):  # what was made with a larger allowance is no answer
        run()
    assert run(max_dropped=0.2)["scored"] == 0
    for remedy in ("first_user", "drop"):
        summary = run(system=remedy)
        assert (summary["rows"], summary["dropped"]) == (20, {})


def test_a_row_whose_sides_become_the_same_ids_is_dropped_by_name(
    commit_model: CommitModel, store: Store, tmp_path: Path
) -> None:
    trimming = CHATML.replace("m.content", "m.content | trim")
    checkpoint = commit_model(store, chat_model(tmp_path / "trimming", trimming))
    shard = chat_shard(store, [("q", "a", "a "), ("q", "a", "b")])
    summary = execute(STAGE, request(checkpoint, shard), store).summary
    assert (summary["rows"], summary["dropped"]) == (1, {SIDES_EQUAL: 1})


def test_an_end_of_turn_of_the_generation_config_ends_a_sequence(
    commit_model: CommitModel, store: Store, tmp_path: Path
) -> None:
    ends = chat_model(tmp_path / "ends", CHATML.replace("</s>", "~"))
    tilde = load_tokenizer(ends).convert_tokens_to_ids("~")
    (ends / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, tilde]}))
    shard = chat_shard(store, [("q", "ab", "c")])
    (row,) = table(store, execute(STAGE, request(commit_model(store, ends), shard), store))
    assert (row["chosen_tokens"], row["rejected_tokens"]) == (3, 2)


def test_a_damaged_part_costs_its_rows_scoring_and_nothing_else(
    make_model: Make, commit_model: CommitModel, commit_shard: CommitShard, store: Store, texts: Texts, forwarded: Any
) -> None:
    checkpoint = commit_model(store, make_model())
    execute(STAGE, request(checkpoint, commit_shard(store, texts[:4])), store)
    cache = Path(store.path("cache", "reference_logprobs"))
    (victim,) = cache.rglob("part-*.parquet")
    shard = commit_shard(store, texts)
    rows = table(store, execute(STAGE, request(checkpoint, shard), store))
    victim.write_bytes(victim.read_bytes()[:-20])
    forget_artifacts(store)
    forwarded.lengths.clear()
    again = execute(STAGE, request(checkpoint, shard), store)
    assert len(forwarded.lengths) == again.summary["scored"] == 8
    assert_same(table(store, again), rows)


def test_policy_longer_than_the_model_is_bad_input(
    make_model: Make, commit_model: CommitModel, commit_shard: CommitShard, store: Store, texts: Texts
) -> None:
    with pytest.raises(BadInput, match=r"tokens\.max_length"):
        execute(STAGE, request(commit_model(store, make_model()), commit_shard(store, texts), max_length=129), store)


def test_unpaired_rows_are_bad_input(make_model: Make, commit_model: CommitModel, store: Store) -> None:
    attempt = store.begin("preference_shard", "k")
    write_rows(attempt.path / "rows.parquet", [unpaired_row("a", "b", True, "f", 1)])
    fields: dict[str, Any] = {"stage": "s", "code_version": 1, "inputs": {}, "summary": {}, "environment": {}}
    shard = store.commit(attempt, digest="d", started_at="", seconds=0.0, **fields).artifact
    with pytest.raises(BadInput, match="needs pairs"):
        execute(STAGE, request(commit_model(store, make_model()), shard), store)


def test_a_store_that_is_not_a_local_folder_keeps_the_cache_as_well(
    make_model: Make, commit_model: CommitModel, commit_shard: CommitShard, tmp_path: Path, texts: Texts, forwarded: Any
) -> None:
    remote = Store(f"memory://{tmp_path.name}", cache=tmp_path / "copies")
    asked = request(commit_model(remote, make_model()), commit_shard(remote, texts))
    rows = table(remote, execute(STAGE, asked, remote))
    forget_artifacts(remote)
    forwarded.lengths.clear()
    assert table(remote, execute(STAGE, asked, remote)) == rows
    assert forwarded.lengths == []


def test_a_shard_read_in_pieces_is_the_same_artifact(
    make_model: Make,
    commit_model: CommitModel,
    commit_shard: CommitShard,
    store: Store,
    texts: Texts,
    tmp_path: Path,
    forwarded: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts = [*texts, ("long", " a" * 100, " b" * 100)]  # dropped
    whole = execute(STAGE, request(commit_model(store, make_model()), commit_shard(store, texts)), store)
    forwarded.lengths.clear()
    monkeypatch.setattr("alignment.data.rows.BATCH_ROWS", 4)
    monkeypatch.setattr("alignment.stages.reference_logprobs.ROWS_AT_ONCE", 9)
    elsewhere = Store(str(tmp_path / "elsewhere"))
    pieces = execute(STAGE, request(commit_model(elsewhere, make_model()), commit_shard(elsewhere, texts)), elsewhere)
    assert len(forwarded.lengths) == 48
    assert pieces.digest == whole.digest
    assert_same(table(elsewhere, pieces), table(store, whole))
    assert table(elsewhere, pieces, "dropped.parquet") == table(store, whole, "dropped.parquet")
    counted = ("rows", "dropped", "sequences", "scored", "tokens")
    assert [pieces.summary[name] for name in counted] == [whole.summary[name] for name in counted]


def test_the_summary_says_how_well_the_device_was_used(
    make_model: Make, commit_model: CommitModel, commit_shard: CommitShard, store: Store, texts: Texts, forwarded: Any
) -> None:
    checkpoint = commit_model(store, make_model())
    asked = request(checkpoint, commit_shard(store, texts))
    told = execute(STAGE, asked, store).summary
    assert told["forwarded_tokens"] < told["tokens"] == sum(forwarded.lengths)
    assert 0 <= told["padding_waste"] < 0.2
    assert told["useful_tflops_per_second"] > 0
    forget_artifacts(store)
    assert "padding_waste" not in execute(STAGE, asked, store).summary


KILLED = """
import os, signal, sys
from alignment.store import Store
from alignment.logprobs import reference
from alignment.logprobs.cache import LogprobCache
from alignment.stages.reference_logprobs import STAGE
from alignment.stages import execute

asked = STAGE.request.model_validate_json(open(sys.argv[1]).read())
reference.PART_SEQUENCES = 4
add, parts = LogprobCache.add_values, []

def add_and_die(cache, scored):
    if len(parts) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    parts.append(len(scored))
    add(cache, scored)

LogprobCache.add_values = add_and_die
execute(STAGE, asked, Store(sys.argv[2]))
"""


def test_a_killed_run_continues_where_its_last_part_ended(
    make_model: Make,
    commit_model: CommitModel,
    commit_shard: CommitShard,
    store: Store,
    texts: Texts,
    tmp_path: Path,
    forwarded: Any,
) -> None:
    checkpoint, shard = commit_model(store, make_model()), commit_shard(store, texts)
    asked = request(checkpoint, shard, batch_tokens=1)
    (tmp_path / "request.json").write_text(asked.model_dump_json())
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "request.json"), store.url], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert store.find(STAGE.kind, STAGE.key(asked)) is None
    continued = execute(STAGE, asked, store)
    assert len(forwarded.lengths) == continued.summary["scored"] == 48 - 3 * 4
    elsewhere = Store(str(tmp_path / "elsewhere"))
    whole = execute(STAGE, request(commit_model(elsewhere, make_model()), commit_shard(elsewhere, texts)), elsewhere)
    assert_same(table(store, continued), table(elsewhere, whole))


RANK = """
import json, os, sys
from alignment.store import Store
from alignment.logprobs import reference
from alignment.stages.reference_logprobs import STAGE
from alignment.stages import execute

asked = STAGE.request.model_validate_json(open(sys.argv[1]).read())
score, lengths = reference.score, []

def counted(model, sequences, *how):
    lengths.extend(map(len, sequences))
    return score(model, sequences, *how)

reference.score = counted
execute(STAGE, asked, Store(sys.argv[2]))
open(f"{sys.argv[3]}/{os.environ['RANK']}.json", "w").write(json.dumps(lengths))
"""


def test_two_ranks_each_forward_a_share_and_give_the_values_of_one(
    make_model: Make,
    commit_model: CommitModel,
    commit_shard: CommitShard,
    store: Store,
    texts: Texts,
    tmp_path: Path,
    forwarded: Any,
) -> None:
    checkpoint, shard = commit_model(store, make_model()), commit_shard(store, texts)
    asked = request(checkpoint, shard)
    (tmp_path / "request.json").write_text(asked.model_dump_json())
    (tmp_path / "rank.py").write_text(RANK)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run(
        [*launch, str(tmp_path / "rank.py"), str(tmp_path / "request.json"), store.url, str(tmp_path)], check=True
    )
    commit = store.find(STAGE.kind, STAGE.key(asked))
    assert commit is not None
    lengths = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert [len(share) for share in lengths] == [24, 24]
    assert abs(sum(lengths[0]) - sum(lengths[1])) <= max(lengths[0])
    elsewhere = Store(str(tmp_path / "elsewhere"))
    alone = execute(STAGE, request(commit_model(elsewhere, make_model()), commit_shard(elsewhere, texts)), elsewhere)
    assert len(forwarded.lengths) == 48
    assert commit.digest == alone.digest
    assert_same(table(store, commit), table(elsewhere, alone))
