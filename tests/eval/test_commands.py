from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from alignment.errors import BadInput
from eval.commands import compare_files, score_files
from eval.suites.rows import read_records, write_records
from eval.suites.samples import Sample, read_samples, write_samples


def solutions(real_data: Path, kind: str, folder: Path) -> Path:
    """The published solutions as responses, with the answer marked as GSM8K marks it."""
    records = read_records(real_data / f"gsm8k/solutions_6b_{kind}.jsonl")
    path = folder / f"{kind}.jsonl"
    turns = ({"id": r["id"], "turns": [r["solution"].replace("\nA: ", "\n#### ")]} for r in records)
    write_records(path, turns)
    return path


@pytest.mark.real_data
def test_gsm8k_agrees_with_the_authors_on_every_published_solution(real_data: Path, tmp_path: Path) -> None:
    data = real_data / "gsm8k/test.jsonl"
    for kind, correct, stderr in (("finetuning", 286, 0.01135), ("verification", 515, 0.01344)):
        scored = score_files("gsm8k", solutions(real_data, kind, tmp_path), data, out=tmp_path / kind)
        strict = scored["metrics"]["exact_match,strict-match"]
        assert (scored["suite"], scored["n"], scored["missing"]) == ("gsm8k", 1319, [])
        assert strict["value"] == pytest.approx(correct / 1319)
        assert strict["stderr"] == pytest.approx(stderr, abs=5e-6)
        verdicts = [r["is_correct"] for r in read_records(real_data / f"gsm8k/solutions_6b_{kind}.jsonl")]
        samples = [s for s in read_samples(scored["samples"]) if s.metric == "exact_match,strict-match"]
        assert [s.value == 1.0 for s in samples] == verdicts
    found = compare_files(tmp_path / "finetuning", tmp_path / "verification", "exact_match,strict-match")
    (difference,) = found.values()
    assert difference["difference"] * 100 == pytest.approx(17.36, abs=0.005)
    assert difference["stderr"] * 100 == pytest.approx(1.351, abs=0.0005)
    assert (difference["gained"], difference["lost"], difference["verdict"]) == (293, 64, "improved")
    wanted = {"n", "baseline", "candidate", "difference", "stderr", "ci95", "p_value", "minimum_detectable_effect"}
    assert wanted <= set(difference)
    json.dumps(found)


@pytest.mark.real_data
def test_mt_bench_ratings_are_read_again_from_the_stored_judgments(real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "mt_bench"
    scored = score_files(
        "mt_bench",
        folder / "answers_mistral-orpo-capybara.jsonl",
        folder / "question.jsonl",
        folder / "judgments_mistral-orpo-capybara.jsonl",
        tmp_path,
    )
    values = {name: round(metric["value"], 3) for name, metric in scored["metrics"].items()}
    assert values == {
        "turn_1": 7.125,
        "turn_2": pytest.approx(6.513, abs=6e-4),
        "average": pytest.approx(6.819, abs=6e-4),
    }
    assert (scored["n"], scored["unparsable"], scored["unjudged"]) == (80, 0, 0)
    assert scored["metrics"]["average"]["n"] == 160


@pytest.mark.real_data
def test_ratings_that_cannot_be_read_are_counted_and_never_guessed(real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "mt_bench"
    records = read_records(folder / "judgments_mistral-orpo-capybara.jsonl")
    records[0]["judgment"] = "I would rather not say."
    write_records(tmp_path / "judgments.jsonl", records[:-1])
    scored = score_files(
        "mt_bench",
        folder / "answers_mistral-orpo-capybara.jsonl",
        folder / "question.jsonl",
        tmp_path / "judgments.jsonl",
        tmp_path,
    )
    assert (scored["unparsable"], scored["unjudged"], scored["metrics"]["average"]["n"]) == (1, 1, 158)


@pytest.mark.real_data
def test_mt_bench_without_judgments_is_not_judged(real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "mt_bench"
    answers = folder / "answers_mistral-orpo-capybara.jsonl"
    scored = score_files("mt_bench", answers, folder / "question.jsonl", out=tmp_path)
    assert (scored["judged"], scored["metrics"], read_samples(scored["samples"])) == (False, {}, [])


@pytest.mark.real_data
@pytest.mark.usefixtures("sentence_data")
def test_ifeval_scores_all_prompts_and_repeats(real_data: Path, tmp_path: Path) -> None:
    data = real_data / "ifeval/input_data.jsonl"
    items = read_records(data)
    # The prompt itself as the answer: no item of "repeat the prompt first" can then miss its instruction.
    write_records(tmp_path / "r.jsonl", ({"id": item["key"], "turns": [item["prompt"]]} for item in items))
    scored = score_files("ifeval", tmp_path / "r.jsonl", data, out=tmp_path / "one")
    again = score_files("ifeval", tmp_path / "r.jsonl", data, out=tmp_path / "two")
    assert read_samples(scored["samples"]) == read_samples(again["samples"])
    assert scored["metrics"]["prompt_level_strict_acc"]["n"] == 541
    assert scored["metrics"]["inst_level_strict_acc"]["n"] == 834
    rows = [s for s in read_samples(scored["samples"]) if s.metric == "inst_level_strict_acc"]
    assert len({row.cluster for row in rows}) == 541
    repeats = [row for row in rows if json.loads(row.detail)["instruction"] == "combination:repeat_prompt"]
    assert repeats and sum(row.value or 0 for row in repeats) >= 1
    commas = {str(item["key"]): "," not in item["prompt"] for item in items}
    for row in rows:
        if json.loads(row.detail)["instruction"] == "punctuation:no_comma":
            assert row.value == commas[row.cluster]


@pytest.mark.real_data
def test_missing_sentence_data_is_said_in_one_line(real_data: Path, tmp_path: Path) -> None:
    data = tmp_path / "input_data.jsonl"  # away from the sentence data that lies beside the original
    shutil.copy(real_data / "ifeval/input_data.jsonl", data)
    write_records(tmp_path / "r.jsonl", ({"id": r["key"], "turns": ["WORD. Word."]} for r in read_records(data)))
    lines = [  # a process of its own: NLTK keeps what it has loaded once
        "import nltk, sys",
        "from eval.commands import score_files",
        "nltk.data.path[:] = []",
        "score_files('ifeval', *sys.argv[1:3], out=sys.argv[3])",
    ]
    arguments = [str(tmp_path / "r.jsonl"), str(data), str(tmp_path / "out")]
    command = [sys.executable, "-c", "\n".join(lines), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("alignment.errors.BadInput: IFEval") and "nltk.downloader punkt_tab" in last


def test_missing_and_failed_answers_are_stated_and_not_counted(tmp_path: Path) -> None:
    write_records(tmp_path / "data.jsonl", ({"question": f"q{n}", "answer": f"#### {n}"} for n in range(4)))
    responses = [
        {"id": 0, "turns": ["#### 0"]},
        {"id": 2, "turns": [], "failed": "prompt of 600 tokens + 16 new > 512"},
        {"id": 3, "turns": [""]},
    ]
    write_records(tmp_path / "r.jsonl", responses)
    scored = score_files("gsm8k", tmp_path / "r.jsonl", tmp_path / "data.jsonl", out=tmp_path / "out")
    assert (scored["n"], scored["missing"]) == (2, ["1"])
    assert scored["failed"] == {"2": "prompt of 600 tokens + 16 new > 512"}
    assert scored["metrics"]["exact_match,strict-match"]["value"] == 0.5
    assert (scored["empty"], scored["length"]) == (["3"], {"answers": 2.0, "characters": 3.0})
    failed = [sample for sample in read_samples(scored["samples"]) if sample.id == "2"]
    assert {sample.value for sample in failed} == {None}


def test_a_response_or_judgment_to_no_item_is_named(tmp_path: Path) -> None:
    question = {"question_id": 1, "category": "writing", "turns": ["a", "b"]}
    write_records(tmp_path / "q.jsonl", [question])
    write_records(tmp_path / "r.jsonl", [{"id": 1, "turns": ["a", "b"]}])
    write_records(tmp_path / "stray.jsonl", [{"id": 5, "turns": ["a", "b"]}])
    judgment = {"question_id": 5, "turn": 1, "judgment": "[[5]]", "judge": ["j", "p"], "model": "m"}
    write_records(tmp_path / "j.jsonl", [judgment])
    with pytest.raises(BadInput, match=r"stray.jsonl.*id 5"):
        score_files("mt_bench", tmp_path / "stray.jsonl", tmp_path / "q.jsonl", out=tmp_path)
    with pytest.raises(BadInput, match=r"j.jsonl.*question 5"):
        score_files("mt_bench", tmp_path / "r.jsonl", tmp_path / "q.jsonl", tmp_path / "j.jsonl", tmp_path)
    with pytest.raises(BadInput, match="give --responses"):
        score_files("mt_bench", None, tmp_path / "q.jsonl")
    with pytest.raises(BadInput, match="judgments go with mt_bench"):
        score_files("gsm8k", tmp_path / "r.jsonl", tmp_path / "q.jsonl", tmp_path / "j.jsonl")


def test_one_suite_measured_on_other_items_and_metrics_says_what_was_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def measured(name: str, ids: range, metrics: list[str]) -> Path:
        path = tmp_path / f"{name}.parquet"
        write_samples(path, [Sample("gsm8k", str(n), str(n), metric, n % 2, "") for metric in metrics for n in ids])
        return path

    before, after = measured("before", range(8), ["both", "old"]), measured("after", range(3, 12), ["both", "new"])
    told = compare_files(before, after)
    assert list(told) == ["both"]
    found = told["both"]
    assert (found["n"], found["missing"]) == (5, 7)
    assert (found["missing_candidate"], found["missing_baseline"]) == (3, 4)
    assert found["missing_ids"] == ["0", "1", "2", "8", "9", "10", "11"]
    assert [record.getMessage() for record in caplog.records] == [
        "not compared, as the baseline alone has it: old",
        "not compared, as the candidate alone has it: new",
    ]


@pytest.mark.parametrize("margin", [-1.0, float("nan"), float("inf")])
def test_a_margin_that_is_no_size_is_refused(tmp_path: Path, margin: float) -> None:
    with pytest.raises(BadInput, match="margin"):
        compare_files(tmp_path, tmp_path, margin=margin)


def test_an_unusable_out_is_found_before_anything_is_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_records(tmp_path / "data.jsonl", [{"question": "q", "answer": "#### 1"}])
    write_records(tmp_path / "r.jsonl", [{"id": 0, "turns": ["#### 1"]}])
    monkeypatch.setattr("eval.commands.score_suite", lambda *_: pytest.fail("scored"))
    for out in (tmp_path / "r.jsonl", tmp_path / "r.jsonl" / "deeper", Path("/proc/nope"), Path("a\0b")):
        with pytest.raises(BadInput, match="samples cannot be written here") as found:
            score_files("gsm8k", tmp_path / "r.jsonl", tmp_path / "data.jsonl", out=out)
        assert found.value.file == str(out)


def arc(folder: Path, responses: list[dict[str, Any]]) -> tuple[Path, Path]:
    choices = {"text": ["the barn", "the hut"], "label": ["A", "B"]}
    items = ({"question": f"{n}?", "choices": choices, "answerKey": "A"} for n in range(3))
    write_records(folder / "arc.jsonl", items)
    write_records(folder / "r.jsonl", responses)
    return folder / "r.jsonl", folder / "arc.jsonl"


def test_a_task_of_lm_eval_is_scored_from_files_alone(tmp_path: Path) -> None:
    stored = [[[-1.0, True], [-2.0, False]], [[-3.0, False], [-2.0, False]]]
    responses, data = arc(tmp_path, [{"id": n, "loglikelihoods": one} for n, one in enumerate(stored)])
    scored = score_files("arc_challenge", responses, data, out=tmp_path / "out")
    assert (scored["n"], scored["missing"], scored["metrics"]["acc"]["value"]) == (2, ["2"], 0.5)
    rows = [s for s in read_samples(scored["samples"]) if s.metric == "acc"]
    assert [(s.response, s.value) for s in rows] == [("the barn", 1.0), ("the hut", 0.0)]
    assert json.loads(rows[1].detail) == {"loglikelihoods": [-3.0, -2.0]}


def test_log_likelihoods_of_another_number_than_choices_lose_that_item_by_name(tmp_path: Path) -> None:
    stored = [[[-1.0, True], [-2.0, False]], [[-3.0, False]]]
    responses, data = arc(tmp_path, [{"id": n, "loglikelihoods": one} for n, one in enumerate(stored)])
    scored = score_files("arc_challenge", responses, data, out=tmp_path / "out")
    assert (scored["n"], scored["metrics"]["acc"]["n"]) == (1, 1)
    assert "1 log-likelihoods for 2 continuations" in scored["failed"]["1"]


def test_a_published_file_is_scored_alone_and_other_options_go_with_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = {"question_id": 1, "turn": 1, "judge": ["j", "single-v1"], "model": "m", "judgment": "[[7]]"}
    write_records(tmp_path / "j.jsonl", [record])
    assert score_files("mt_bench", None, None, tmp_path / "j.jsonl", tmp_path / "out")["n"] == 1
    monkeypatch.chdir(tmp_path)
    for version in ("v1", "v2"):  # two versions of a file do not share a folder
        (tmp_path / f"a.{version}.jsonl.gz").write_bytes(gzip.compress((tmp_path / "j.jsonl").read_bytes()))
        scored = score_files("mt_bench", None, None, tmp_path / f"a.{version}.jsonl.gz")
        assert scored["samples"] == f"scores/mt_bench-a.{version}/samples.parquet"
    for more, words in (
        ({"responses": tmp_path / "r.jsonl"}, "give --data: .*needs neither"),
        ({"against": tmp_path / "b.jsonl"}, "--against.*: goes with --responses and --data"),
        ({"difficulty": tmp_path / "d.csv"}, "--difficulty.*: goes with AlpacaEval's annotations"),
    ):
        given = {"responses": None, "data": None, "judgments": tmp_path / "j.jsonl", "out": tmp_path / "o"}
        with pytest.raises(BadInput, match=words):
            score_files("mt_bench", **given | more)  # type: ignore[arg-type]
