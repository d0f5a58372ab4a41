"""Candidates: the same for the same seed, whatever the batch, the interruption or the sources beside them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alignment.data.files import pin_file
from alignment.data.rows import content_id, is_held_out
from alignment.data.sources import PromptSource, SuiteItems
from alignment.digest import json_digest
from alignment.errors import BadInput
from alignment.generation import engine
from alignment.generation.generator import Generator
from alignment.generation.prompts import HELD_OUT
from alignment.recipe import Generate
from alignment.stages import candidates, execute
from alignment.stages.candidates import STAGE, CandidatesRequest, CandidatesSummary, parts_of, read_candidates
from alignment.store import Artifact, Store


def asked(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def id_of(text: str) -> str:
    return content_id({"prompt": tuple(asked(text))})


def source(folder: Path, name: str, records: list[Any]) -> PromptSource:
    path = folder / name
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return PromptSource(file=pin_file(str(path)))


@pytest.fixture
def request_of(
    tmp_path: Path, micro_folder: Path, commit_checkpoint: Callable[..., Artifact]
) -> Callable[..., CandidatesRequest]:
    checkpoint = commit_checkpoint("micro", micro_folder)

    def build(texts: list[str] | None = None, **more: Any) -> CandidatesRequest:
        texts = ["Hello", "Write a line.", "a"] if texts is None else texts
        prompts = (source(tmp_path, "prompts.jsonl", [{"prompt": asked(text)} for text in texts]),)
        given = {"prompts": prompts, "n": 3, "temperature": 0.8, "top_p": 0.95, "max_new_tokens": 8, "seed": 1}
        given |= {"precision": "float32", "batch_tokens": 4096, "checkpoint": checkpoint}
        return CandidatesRequest(**given | more)

    return build


def texts_of(store: Store, artifact: Artifact) -> dict[tuple[str, int], str]:
    return {
        (row["row_id"], row["k"]): row["text"]
        for part in parts_of(store, artifact)
        for row in read_candidates(store.fetch(part))
    }


def test_each_candidate_has_a_seed_of_its_own_whatever_its_batch_and_its_source(
    store: Store, tmp_path: Path, request_of: Callable[..., CandidatesRequest]
) -> None:
    other = Store(str(tmp_path / "other"), cache=tmp_path / "other cache")
    together = execute(STAGE, request_of(), store)
    found = texts_of(store, together.artifact)
    assert len(found) == 9 and len(set(found.values())) > 3
    for text in ("Hello", "Write a line.", "a"):
        alone = request_of([text], batch_tokens=1)
        stage = replace(STAGE, kind=f"alone-{json_digest(text)[:8]}")
        for place, said in texts_of(store, execute(stage, alone, store).artifact).items():
            assert found[place] == said
    assert together.summary["candidates"] == 9 and together.summary["prompts"] == 3
    assert execute(STAGE, request_of(seed=2), store).digest != together.digest
    assert not other.find(STAGE.kind, together.key)


def test_what_was_sampled_before_a_kill_is_not_sampled_again(
    store: Store, request_of: Callable[..., CandidatesRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "PART_PROMPTS", 1)
    whole = texts_of(store, execute(replace(STAGE, kind="whole"), request_of(), store).artifact)
    answer, calls = Generator.answer, []

    def killed_at_the_third(self: Generator, prompts: Any, *more: Any) -> Any:
        calls.append(prompts)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return answer(self, prompts, *more)

    monkeypatch.setattr(Generator, "answer", killed_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        execute(STAGE, request_of(), store)
    assert texts_of(store, execute(STAGE, request_of(), store).artifact) == whole
    assert len(calls) == 4  # the third part again, and neither of the first two


def test_a_source_that_changed_makes_only_its_own_anew_and_one_model_is_loaded(
    store: Store, tmp_path: Path, request_of: Callable[..., CandidatesRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.forget()
    loads: list[Path] = []
    load = engine.load_model
    monkeypatch.setattr(
        engine, "load_model", lambda folder, *more, **named: loads.append(folder) or load(folder, *more, **named)
    )
    one = source(tmp_path, "one.jsonl", [{"prompt": asked("one")}])
    two = source(tmp_path, "two.jsonl", [{"question": "two"}])
    before = execute(STAGE, request_of(prompts=(one, two)), store)
    assert len(loads) == 1
    new = source(tmp_path, "two.jsonl", [{"question": "two, in other words"}])
    after = execute(STAGE, request_of(prompts=(one, new)), store)
    first, second = parts_of(store, before.artifact), parts_of(store, after.artifact)
    assert first[0] == second[0] and first[1] != second[1]
    assert len(loads) == 1 and CandidatesSummary.of(after).candidates == 6


def test_no_candidate_is_of_a_held_out_prompt_or_an_evaluation_item(
    store: Store, tmp_path: Path, request_of: Callable[..., CandidatesRequest]
) -> None:
    words = "who of the two old foxes ran faster down the hill to the river at night"
    items = tmp_path / "items.jsonl"
    items.write_text(json.dumps({"question": words}) + "\n" + json.dumps({"question": "Short one?"}) + "\n")
    texts = [f"prompt {number}" for number in range(8)]
    held = {text for text in texts if is_held_out(tuple(asked(text)), "chat", 0.5)}
    made = execute(
        STAGE,
        request_of(
            [*texts, f"Say {words}", "short  one?", "prompt 0"],
            n=1,
            held_out_fraction=0.5,
            suites={"gsm8k": SuiteItems(file=pin_file(str(items)))},
        ),
        store,
    )
    assert {row_id for row_id, _ in texts_of(store, made.artifact)} == {id_of(text) for text in set(texts) - held}
    reasons = CandidatesSummary.of(made).reasons
    assert reasons == {"duplicate": 1, "holds an item of gsm8k": 2, HELD_OUT: len(held)}


def test_a_withdrawn_prompt_is_gone_and_the_others_are_not_sampled_again(
    store: Store, request_of: Callable[..., CandidatesRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = texts_of(store, execute(STAGE, request_of(), store).artifact)
    monkeypatch.setattr(Generator, "answer", lambda *_: pytest.fail("sampled again"))
    foreign = "f" * 32
    after = execute(STAGE, request_of(withdrawn=tuple(sorted((id_of("a"), foreign)))), store)
    assert texts_of(store, after.artifact) == {place: text for place, text in before.items() if place[0] != id_of("a")}
    assert CandidatesSummary.of(after).withdrawn == 1
    again = execute(STAGE, request_of(withdrawn=tuple(sorted((id_of("a"), id_of("Hello"))))), store)
    assert {row_id for row_id, _ in texts_of(store, again.artifact)} == {id_of("Write a line.")}


def test_portions_share_the_prompts_out_and_most_prompts_are_drawn(
    store: Store, request_of: Callable[..., CandidatesRequest]
) -> None:
    texts = [f"prompt {number}" for number in range(10)]
    portions = [
        {
            row_id
            for row_id, _ in texts_of(store, execute(STAGE, request_of(texts, n=1, portion=(k, 2)), store).artifact)
        }
        for k in range(2)
    ]
    assert portions[0].isdisjoint(portions[1]) and portions[0] | portions[1] == {id_of(text) for text in texts}
    few = execute(STAGE, request_of(texts, n=1, max_prompts=4), store)
    assert CandidatesSummary.of(few).prompts == 4


def test_what_cannot_be_a_prompt_is_counted_and_named(
    store: Store, tmp_path: Path, request_of: Callable[..., CandidatesRequest]
) -> None:
    records: list[Any] = [
        {"prompt": asked("Hello")},
        {"messages": [*asked("What?"), {"role": "assistant", "content": "That."}]},
        {"prompt": asked("p"), "chosen": [{"role": "assistant", "content": "c"}], "rejected": "r"},
        {"prompt": [{"role": "system", "content": "x"}]},
        {"text": "nothing"},
        {"prompt": asked("b" * 600)},
    ]
    prompts = (source(tmp_path, "odd.jsonl", records),)
    summary = CandidatesSummary.of(execute(STAGE, request_of(prompts=prompts), store))
    assert summary.prompts == 3 and summary.quarantined == 3 == sum(summary.reasons.values())
    with pytest.raises(BadInput, match=r"no prompt to sample answers to; most common reason: missing field prompt \(1"):
        execute(STAGE, request_of(prompts=(source(tmp_path, "bad.jsonl", records[4:5]),)), store)
    with pytest.raises(ValueError, match="temperature above 0"):
        request_of(temperature=0)


SERVER = """
import sys
from pathlib import Path
from alignment.generation.generator import Generator
from alignment.generation.server import ModelServer
from alignment.models.checkpoint import load_model, load_tokenizer
folder, port, name = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
generator = Generator(load_model(folder, "float32", "cpu"), load_tokenizer(folder), 4096)
ModelServer(generator, [name], "127.0.0.1", port, None).serve_forever()
"""


@pytest.mark.slow
def test_a_server_of_another_program_is_started_asked_and_ended(
    store: Store, tmp_path: Path, request_of: Callable[..., CandidatesRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "serve.py"
    script.write_text(SERVER, encoding="utf-8")
    processes: list[Any] = []
    start = engine.subprocess.Popen

    def noted(*words: Any, **named: Any) -> Any:
        processes.append(start(*words, **named))
        return processes[-1]

    monkeypatch.setattr(engine.subprocess, "Popen", noted)
    served = Generate(kind="vllm", command=f"{sys.executable} {script} {{folder}} {{port}} {{name}}")
    prompts = tuple(source(tmp_path, f"{text}.jsonl", [{"prompt": asked(text)}]) for text in ("one", "two"))
    made = execute(STAGE, request_of(prompts=prompts, generate=served), store)
    rows = [row for part in parts_of(store, made.artifact) for row in read_candidates(store.fetch(part))]
    assert len(rows) == 6 and all(row["tokens"] for row in rows)
    assert [process.poll() is not None for process in processes] == [True], "one for both sources, and it has ended"
    silent = Generate(kind="vllm", command="/bin/false {folder} {port} {name}")
    with pytest.raises(BadInput, match="the server ended with 1 before it served anything"):
        execute(STAGE, request_of(["Hello"], generate=silent, seed=9), store)
    with pytest.raises(ValueError, match=r"command must hold \{name\}"):
        Generate(kind="vllm", command="serve {folder} {port}")


def test_what_is_held_out_is_asked_apart_and_nothing_else(
    store: Store, request_of: Callable[..., CandidatesRequest]
) -> None:
    texts = [f"prompt {number}" for number in range(12)]
    held = {id_of(text) for text in texts if is_held_out(tuple(asked(text)), "chat", 0.4)}
    made = execute(STAGE, request_of(texts, n=1, held_out_fraction=0.4, held_out=True), store)
    assert {row_id for row_id, _ in texts_of(store, made.artifact)} == held != set()
    assert CandidatesSummary.of(made).quarantined == 0
    with pytest.raises(BadInput, match="none of its prompts is held out: give more prompts"):
        execute(STAGE, request_of(texts, n=1, held_out_fraction=0.0, held_out=True), store)


def test_a_source_without_a_prompt_is_named_and_counted_and_the_others_are_sampled(
    store: Store, tmp_path: Path, request_of: Callable[..., CandidatesRequest]
) -> None:
    """A day's file whose prompts were all withdrawn, or cannot be read, ends no night."""
    good = source(tmp_path, "good.jsonl", [{"prompt": asked("Hello")}])
    bad = source(tmp_path, "bad.jsonl", [{"text": "nothing"}, {"text": "again"}])
    gone = source(tmp_path, "gone.jsonl", [{"prompt": asked("mine")}])
    made = execute(STAGE, request_of(prompts=(bad, good, gone), withdrawn=(id_of("mine"),)), store)
    told = CandidatesSummary.of(made)
    assert (told.prompts, told.quarantined, told.reasons) == (1, 2, {"missing field prompt": 2})
    assert {Path(name).name: why for name, why in told.without_prompts.items()} == {
        "bad.jsonl": "no prompt to sample answers to; most common reason: missing field prompt (2 of 2)",
        "gone.jsonl": "no prompt to sample answers to; of its prompts 1 were withdrawn",
    }
    assert len(parts_of(store, made.artifact)) == 1 and len(texts_of(store, made.artifact)) == 3
    with pytest.raises(BadInput, match=r"none of 2 sources has a prompt to sample answers to: .*bad\.jsonl: no prompt"):
        execute(STAGE, request_of(prompts=(bad, gone), withdrawn=(id_of("mine"),)), store)


def test_a_round_without_prompts_of_its_own_says_how_many_are_of_other_rounds(
    store: Store, request_of: Callable[..., CandidatesRequest]
) -> None:
    texts = ["prompt 1", "prompt 2"]
    with pytest.raises(BadInput) as error:
        for number in range(3):  # two prompts, three rounds
            execute(STAGE, request_of(texts, n=1, portion=(number, 3)), store)
    assert "no prompt to sample answers to; of its prompts 0 were withdrawn, and 2 are of other rounds" in str(
        error.value
    )
    assert str(error.value).endswith("give more prompts, or fresh_prompts: false") and "\n" not in str(error.value)
