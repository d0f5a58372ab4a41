"""The command's doors: exit codes, one line for bad input, JSON and nothing else."""

from __future__ import annotations

import getpass
import inspect
import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx2
import pytest

from alignment.recipe import TokenPolicy, load_recipe
from alignment.stages.policy_checkpoint import STAGE as POLICY
from alignment.stages.preference_shard import STAGE as SHARD
from alignment.stages.stage import Stage
from alignment.store import Ref
from alignment_dags.cli import main
from alignment_dags.cli.files import reference
from alignment_dags.recipes import recipes_in_use
from resources.home import PROJECT
from resources.store import ArtifactStore

JUDGE = ["--questions", "q", "--answers", "a", "--judge-model", "m", "--out", "o"]


def align(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["align", *arguments])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def refused(capsys: pytest.CaptureFixture[str]) -> str:
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    return err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["run", "none.yaml"], "none.yaml: no such recipe"),
        (["run"], "Missing argument"),
        (["run", "x.yaml", "--fast"], "No such option"),
        (["prefs", "check", "none.jsonl"], "none.jsonl"),
        (["lineage", "no-such-model"], "no-such-model"),
        (["lineage"], "give either a MODEL or --row"),
        (["prefs", "withdraw", "none.yaml", "--row-id", "x"], "none.yaml: no such recipe"),
        (["prefs", "restore", "none.yaml", "--shard", "x"], "none.yaml: no such recipe"),
        (["gc", "none.yaml"], "none.yaml: no such recipe"),
        (["promote", "model"], "give either --to VERSION, or --override with --reason WHY"),
        (["promote", "model", "--override"], "needs --reason"),
        (["promote", "no-such-model", "--to", "1"], "no recipe in use registers 'no-such-model'"),
        (["backfill", "none.yaml"], "none.yaml: no such recipe"),
        (["upgrade", "none.yaml", "--accept"], "none.yaml: no such recipe"),
        (["backfill", str(PROJECT / "recipes" / "quickstart.yaml"), "--stage", "chess"], "'chess' is not one of"),
        (["score", "gsm8k", "--responses", "none.jsonl", "--data", "none.jsonl"], "none.jsonl"),
        (["score", "chess", "--responses", "none.jsonl", "--data", "none.jsonl"], "chess"),
        (["compare", "none.parquet", "none.parquet"], "none.parquet"),
        (["report", "none.yaml"], "none.yaml: no such recipe"),
        (["lineage", "--row", " "], "field '--row': no row is named"),
        (["backfill", "quickstart", "--shards", " ,,"], "field '--shards': no shard is named"),
        (["nights", "none.yaml", "--last", "99999999999999999999"], "--last"),
        (["reference", "--model", "m", "--pairs", "p", "--out", "o", "--max-length", "0"], "--max-length"),
        (["recipes", "schema", "--out", "/proc"], "/proc, field '--out': cannot be written"),
        (["recipes", "schema", "--out", "/proc/none/schema.json"], "/proc/none/schema.json, field '--out'"),
        (["score", "gsm8k", "--responses", "r", "--data", "d", "--against", "a"], "a, field '--against'"),
        (
            ["judge", "mt_bench", *JUDGE, "--base-url", "ftp://h"],
            "base_url must be as in",
        ),
        (["report", str(PROJECT / "recipes" / "quickstart.yaml")], "no report yet"),
        (["prefs", "stats", "day\udcff.jsonl"], "day\\udcff.jsonl: the name is not UTF-8; rename it"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    arguments: list[str], told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert align(*arguments, monkeypatch=monkeypatch) == 2
    assert told in refused(capsys)


@pytest.mark.parametrize(
    "store", ["memory://x", "nowhere://x", "/proc/none", "s3://", "s3:/bucket", "file://", "file:///"]
)
def test_a_store_that_cannot_be_used_is_refused_before_anything_starts(
    store: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ALIGN_STORE", store)
    assert align("run", str(PROJECT / "recipes" / "quickstart.yaml"), monkeypatch=monkeypatch) == 2
    assert store in refused(capsys)


@pytest.mark.parametrize("variable", ["ALIGN_HOME", "DAGSTER_HOME"])
@pytest.mark.parametrize("home", ["/proc/none", "{file}", "{file}/below", "{circle}"])
def test_a_home_that_cannot_be_used_is_named(
    variable: str, home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    given = home.format(file=tmp_path / "file", circle=tmp_path / "circle")
    monkeypatch.setenv(variable, given)
    assert align("pools", "apply", monkeypatch=monkeypatch) == 2
    told = refused(capsys)
    assert given in told and f"'{variable}'" in told


def test_a_home_below_a_quoted_tilde_is_the_same_for_us_and_for_dagster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALIGN_HOME", "~/align")
    monkeypatch.setenv("DAGSTER_HOME", "~/x")
    for name in ("ALIGN_STORE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    assert align("pools", "apply", monkeypatch=monkeypatch) == 0
    assert os.environ["DAGSTER_HOME"] == str(tmp_path / "x") and os.environ["ALIGN_STORE"].startswith(str(tmp_path))
    assert (tmp_path / "x" / "dagster.yaml").exists() and not (tmp_path / "~").exists()


def test_every_key_of_the_token_policy_is_an_option_of_align_reference() -> None:
    options = inspect.signature(reference).parameters
    assert set(TokenPolicy.model_fields) <= set(options), "an error would ask for a key that nobody can give"


@pytest.mark.parametrize("verb", [["plan"], ["recipes", "check"]])
def test_a_gate_that_cannot_pass_is_refused_without_a_run(
    verb: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    embedded = "{embedded: micro}"
    path = tmp_path / "r.yaml"
    path.write_text(
        f"{{name: r, base_model: {embedded}, sft: {{dataset: {embedded}}}, preferences: {embedded},"
        f" evals: {{gsm8k: {{embedded: micro, num_fewshot: 0}}}}, gate: {{metrics: {{gsm8k/x: {{improve: 0}}}}}}}}"
    )
    assert align(*verb, str(path), monkeypatch=monkeypatch) == 2
    assert f"{path}, field 'gate.metrics.gsm8k/x': gsm8k has no such metric" in refused(capsys)


def test_a_hub_that_gives_no_answer_is_named_with_what_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def silent(*_: object, **__: object) -> None:
        raise httpx2.ConnectError("[Errno 111] Connection refused")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", silent)
    embedded = "{embedded: micro}"
    path = tmp_path / "r.yaml"
    path.write_text(
        f"{{name: r, base_model: {{hub: some/model}}, sft: {{dataset: {embedded}}}, preferences: {embedded}}}"
    )
    assert align("plan", str(path), "--json", monkeypatch=monkeypatch) == 0
    stages = {one["stage"]: one for one in json.loads(capsys.readouterr().out)["stages"]}
    assert stages["policy_checkpoint"]["memory_gib"] == {
        "value": None,
        "how": "some/model@main on the hub: [Errno 111] Connection refused; --config takes its config.json",
    }
    assert align("gc", str(path), "--dry-run", monkeypatch=monkeypatch) == 1
    assert "cannot be reached: HubUnreachable: some/model@main on the hub: " in refused(capsys)


def test_a_blank_store_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("ALIGN_STORE", "  ")
    assert align("plan", str(PROJECT / "recipes" / "quickstart.yaml"), monkeypatch=monkeypatch) == 2
    assert "field 'ALIGN_STORE': not a place for an artifact store" in refused(capsys)


def test_a_store_that_gives_no_answer_is_one_line_and_exit_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ALIGN_STORE", "s3://user:secret@bucket/place")

    def silent(*_: object) -> None:
        raise ConnectionRefusedError(111, "Connection refused\nand more")

    monkeypatch.setattr("alignment_dags.registry.rows.row_lineage", silent)
    assert align("lineage", "--row", "x", monkeypatch=monkeypatch) == 1
    told = refused(capsys)
    assert told.startswith("error: cannot be reached: ConnectionRefusedError: [Errno 111] Connection refused")
    assert "ALIGN_STORE is s3://bucket/place" in told and "secret" not in told


def test_a_store_of_a_newer_version_is_one_line_and_exit_1(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = home / "align" / "store" / "policy_checkpoint" / "k" / "_COMMIT.json"
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps({"format": 2**31, "new": "field"}))
    assert align("lineage", "--row", "r", monkeypatch=monkeypatch) == 1
    assert "made by a newer version of alignment-dags (store format 2147483648" in refused(capsys)


def test_a_file_without_a_valid_row_is_reported_and_exits_with_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"prompt": "p", "chosen": "same", "rejected": "same"}\n')
    assert align("prefs", "check", str(file), "--json", monkeypatch=monkeypatch) == 2
    out, err = capsys.readouterr()
    assert json.loads(out)["reasons"] == {"chosen equals rejected": 1}
    assert err == f"error: {file}: no valid row\n"


def test_a_file_in_no_known_form_is_refused_in_one_line_with_a_mapping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "pairs.csv"
    file.write_text("question,response_good,response_bad\n" + "q,x,y\n" * 30)
    assert align("prefs", "check", str(file), monkeypatch=monkeypatch) == 2
    _, err = capsys.readouterr()
    assert err.startswith(f"error: {file}: no valid row; its columns are question, response_good, response_bad; ")
    assert "{prompt: question, chosen: response_good, rejected: response_bad}" in err and err.count("\n") == 1


def test_the_form_of_each_row_is_named_and_rows_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "pairs.jsonl"
    rows = [{"question": "q", "chosen": "good", "rejected": "bad", "chosen_score": 2, "rejected_score": 1}]
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"prompt": "p", "chosen": "c", "rejected": "r"}]))
    assert align("prefs", "check", str(file), monkeypatch=monkeypatch) == 0
    out = capsys.readouterr().out
    assert "1  rows in the form: orca pairs\n" in out and "1  rows in the form: pairs\n" in out
    assert align("prefs", "show", str(file), "--row", "1", monkeypatch=monkeypatch) == 0
    out = capsys.readouterr().out
    assert "row 1 (chat, scores 2 and 1)" in out and "    | user: q\n" in out and "row 2" not in out
    assert align("prefs", "show", str(file), "--json", monkeypatch=monkeypatch) == 0
    assert [row["form"] for row in json.loads(capsys.readouterr().out)["shown"]] == ["chat", "text"]
    assert align("prefs", "show", str(file), "--row", "5", monkeypatch=monkeypatch) == 2
    assert capsys.readouterr().err == f"error: {file}, row 5: gives no row: no such record\n"


def test_json_is_one_object_on_stdout_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"prompt": "p", "chosen": "good", "rejected": "bad"}\n{"prompt": "p", "chosen": "same"}\n')
    assert align("prefs", "check", str(file), "--json", monkeypatch=monkeypatch) == 0
    out, _ = capsys.readouterr()
    told = json.loads(out)
    assert (told["rows"], told["accepted"], told["quarantined"], told["kind"]) == (2, 1, 1, "paired")


def test_the_version_is_that_of_the_package(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert align("--version", monkeypatch=monkeypatch) == 0
    assert capsys.readouterr().out == f"align {version('alignment-dags')}\n"


def test_help_needs_no_heavy_package() -> None:
    code = (
        "import sys; sys.argv = ['align', '--help']\n"
        "from alignment_dags.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = 'torch transformers dagster mlflow pandas pyarrow fsspec'.split()\n"
        "print([name for name in heavy if name in sys.modules], file=sys.stderr)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "lineage" in told.stdout
    assert told.stderr.strip() == "[]"


def test_pools_apply_sets_dagsters_limits(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert align("pools", "apply", "--json", monkeypatch=monkeypatch) == 0
    out, _ = capsys.readouterr()
    assert json.loads(out) == {"limits": {"local": 1, "h100": 8, "h100_node": 1}}
    assert (home / "dagster" / "dagster.yaml").is_symlink()


def test_what_does_not_count_in_a_comparison_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"question": f"q{n}", "answer": f"#### {n}"}) + "\n" for n in range(5)))
    for name, items in (("all", 5), ("few", 3)):
        answers = tmp_path / f"{name}.jsonl"
        answers.write_text("".join(json.dumps({"id": n, "turns": [f"#### {n}"]}) + "\n" for n in range(items)))
        arguments = ["--responses", str(answers), "--data", str(data), "--out", str(tmp_path / name)]
        assert align("score", "gsm8k", *arguments, monkeypatch=monkeypatch) == 0
    assert "2 more are missing and do not count" in capsys.readouterr().out
    samples = [str(tmp_path / name / "samples.parquet") for name in ("all", "few")]
    assert align("compare", *samples, monkeypatch=monkeypatch) == 0
    told = "exact_match,strict-match: 2 items have no value on both sides and do not count"
    assert f"{told} (lacking 0 in the baseline alone, 2 in the candidate alone): 3, 4\n" in capsys.readouterr().out


def test_a_judged_suite_without_judgments_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    question = {"question_id": 81, "category": "writing", "turns": ["Write.", "Again."]}
    (tmp_path / "question.jsonl").write_text(json.dumps(question) + "\n")
    (tmp_path / "answers.jsonl").write_text(json.dumps({"id": 81, "turns": ["It.", "Is."]}) + "\n")
    files = ["--responses", str(tmp_path / "answers.jsonl"), "--data", str(tmp_path / "question.jsonl")]
    assert align("score", "mt_bench", *files, "--out", str(tmp_path / "out"), monkeypatch=monkeypatch) == 0
    assert "no scores: a judge scores mt_bench; give --judgments, which `align judge` writes" in capsys.readouterr().out


def test_a_bare_group_shows_its_help_and_no_empty_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert align("prefs", monkeypatch=monkeypatch) == 2
    out, err = capsys.readouterr()
    assert "check" in out + err
    assert "error:" not in err


def test_a_file_of_bad_rows_does_not_flood_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "pairs.jsonl"
    good = '{"prompt": "p", "chosen": "good", "rejected": "bad"}\n'
    file.write_text(good + '{"prompt": "p", "chosen": "same", "rejected": "same"}\n' * 50)
    assert align("prefs", "check", str(file), monkeypatch=monkeypatch) == 0
    out = capsys.readouterr().out
    assert "50 quarantined" in out
    assert f"  {file}: chosen equals rejected in row 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 40 more\n" in out
    assert out.count("chosen equals rejected") == 2 and "--json names every row" in out


def test_every_file_beside_the_recipes_can_be_checked_pools_included(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in (  # of stories260k_hh.yaml, which is checked wherever its data is not
        ("stories260k/config.json", "{}"),
        ("demo/alpaca_en_demo.json", "[]"),
        ("hh_rlhf/harmless-base.test.jsonl.gz", ""),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setenv("ALIGN_TEST_DATA", str(tmp_path))
    files = sorted(str(path) for path in (PROJECT / "recipes").glob("*.yaml"))
    assert align("recipes", "check", *files, monkeypatch=monkeypatch) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in out] == files
    (line,) = (line for line in out if "pools.yaml" in line)
    assert re.fullmatch(r".*pools\.yaml: \d+ pools, well-formed \(no recipe\)", line)
    path = tmp_path / "pools.yaml"
    path.write_text("pools: {h100: {slots: 0}}")
    assert align("recipes", "check", str(path), monkeypatch=monkeypatch) == 2
    assert f"{path}, field 'pools.h100.slots'" in refused(capsys)
    path.write_text("pools: {sft: local}\nname: r")
    assert align("recipes", "check", str(path), monkeypatch=monkeypatch) == 2
    assert "field 'base_model'" in refused(capsys)  # a recipe with pools stays a recipe


def test_settings_outside_of_what_practice_supports_are_noted_by_a_check_and_a_plan_and_not_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "{name: r, base_model: {embedded: micro}, preferences: {embedded: micro}, dpo: {learning_rate: 1.0e+6},"
        " tokens: {max_length: 256}, sft: {dataset: {embedded: micro}, max_length: 256, adam_betas: [0.9, 0.9]}}"
    )
    notes = [
        "sft.adam_betas β₂ 0.9 is outside 0.95 to 0.999, which practice supports",
        "dpo.learning_rate 1e6 is outside 5e-7 to 5e-6, which practice supports for loss: sigmoid with all weights"
        " (models of 1B and more)",
        "dpo.learning_rate 1e6 is 5e+10 times SFT's 2e-5, and practice takes a tenth or less: at SFT's rate preferences"
        " spoil what SFT taught",
    ]
    assert align("recipes", "check", str(path), monkeypatch=monkeypatch) == 0
    out, err = capsys.readouterr()
    assert "r is well-formed" in out and err.splitlines() == [f"note: {path}: {note}" for note in notes]
    assert align("plan", str(path), "--json", monkeypatch=monkeypatch) == 0
    assert json.loads(capsys.readouterr().out)["notes"] == notes
    assert align("plan", str(path), monkeypatch=monkeypatch) == 0
    out = capsys.readouterr().out
    assert all(f"note: {note}\n" in out for note in notes)


def test_shipped_recipes_stay_within_practice_but_for_the_rate_of_the_smallest_models() -> None:
    paths = sorted(path for path in (PROJECT / "recipes").glob("*.yaml") if path.name != "pools.yaml")
    outside = {path.stem: load_recipe(path).dpo.outside_practice() for path in paths}
    noted = {name: [note.split()[0] for note in notes] for name, notes in outside.items() if notes}
    micro = ("grpo_quickstart", "quickstart", "rounds_quickstart", "stories260k_hh")
    assert noted == {name: ["dpo.learning_rate"] for name in micro}


def test_pools_beside_the_recipes_are_no_recipe_where_other_pools_are_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = tmp_path / "used.yaml"
    used.write_text("pools: {local: {slots: 1}}")
    monkeypatch.setenv("ALIGN_POOLS", str(used))
    shipped = {path for path in (PROJECT / "recipes").glob("*.yaml") if path.name != "pools.yaml"}
    assert set(recipes_in_use()) == shipped


def test_a_judge_that_retired_is_warned_of_by_a_check_and_a_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "{name: r, base_model: {embedded: micro}, sft: {dataset: {embedded: micro}, max_length: 256},"
        " preferences: {embedded: micro}, tokens: {max_length: 256}, judge: {kind: openai, model: gpt-4}}"
    )
    told = "the judge gpt-4 has been retired since 2026-10-23: name another in judge.model"
    assert align("recipes", "check", str(path), monkeypatch=monkeypatch) == 0
    out, err = capsys.readouterr()
    assert "r is well-formed" in out and err.startswith(f"warning: {path}: {told}")
    assert align("plan", str(path), "--json", monkeypatch=monkeypatch) == 0
    warnings = json.loads(capsys.readouterr().out)["warnings"]
    assert [warning for warning in warnings if warning.startswith(told)], warnings
    assert align("plan", str(path), monkeypatch=monkeypatch) == 0
    assert f"warning: {told}" in capsys.readouterr().out


def test_what_a_version_makes_anew_is_told_by_plan_and_upgrade_until_it_is_accepted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "{name: r, base_model: {embedded: micro}, sft: {dataset: {embedded: micro}, max_length: 256},"
        " preferences: {embedded: micro}, tokens: {max_length: 256}}"
    )
    store = ArtifactStore().open()

    def made(stage: Stage[Any], version: int, shard: str | None = None) -> None:
        commit = store.commit(
            store.begin(stage.kind, f"{stage.name} {version}"),
            digest="d",
            stage=stage.name,
            code_version=version,
            inputs={},
            summary={},
            environment={"recipe": "r", "device": "a device"},
            started_at="2026-11-20T02:00:00+00:00",
            seconds=1800.0,
        )
        store.write_ref(Ref(artifact=commit.artifact), "r", stage.name, shard)

    def asked(*arguments: str) -> tuple[int, dict[str, Any]]:
        code = align(*arguments, str(path), "--json", monkeypatch=monkeypatch)
        return code, json.loads(capsys.readouterr().out)

    made(POLICY, POLICY.code_version)
    made(SHARD, SHARD.code_version, "a")
    assert asked("plan")[1]["upgrade"] is None
    assert asked("upgrade") == (0, {"recipes": {"r": None}})
    assert align("upgrade", str(path), monkeypatch=monkeypatch) == 0
    assert capsys.readouterr().out == "r: nothing is of an older code version\n"

    made(POLICY, 1)
    made(SHARD, 2, "a")
    made(SHARD, 3, "b")
    _, planned = asked("plan")
    shards, policy = planned["upgrade"]["stages"]
    assert (shards["stage"], shards["artifacts"], shards["old_code_version"]) == ("preference_shard", 2, 2)
    assert (policy["stage"], policy["code_version"]) == ("policy_checkpoint", POLICY.code_version)
    forecasts = {one["stage"]: one for one in planned["stages"]}
    assert policy["slot_seconds"] == forecasts["policy_checkpoint"]["slot_seconds"]
    assert (policy["slot_seconds"]["value"], policy["cost"]) == (1800.0, forecasts["policy_checkpoint"]["cost"])
    assert (planned["upgrade"]["waits"], planned["upgrade"]["accepted"]) == (True, None)

    assert align("plan", str(path), monkeypatch=monkeypatch) == 0
    _, first_line, rest = capsys.readouterr().out.partition("r: this version makes anew (docs/upgrading.md says why):")
    block = first_line + rest
    assert f"  policy_checkpoint  1 → {POLICY.code_version}         1          1800 s  " in block
    assert block.endswith("wait for `align upgrade RECIPE --accept`; `align run` does not.\n")
    assert align("upgrade", str(path), monkeypatch=monkeypatch) == 1
    assert capsys.readouterr().out == block

    code, told = asked("upgrade", "--accept")
    accepted = told["recipes"]["r"]["accepted"]
    assert (code, told["recipes"]["r"]["waits"], accepted["by"]) == (0, False, getpass.getuser())
    assert accepted["stages"] == {one["stage"]: one["code_version"] for one in (shards, policy)}
    assert asked("upgrade") == (0, told)
    assert align("upgrade", str(path), monkeypatch=monkeypatch) == 0
    assert capsys.readouterr().out.endswith(f"Accepted by {accepted['by']} at {accepted['at']}: nights make it.\n")


def test_an_error_is_one_line_that_a_person_can_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"{'x' * 200_000}: 1\n", encoding="utf-8")
    assert align("recipes", "check", str(path), monkeypatch=monkeypatch) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {path}") and len(line) < 2_000
    assert align("report", "y" * 5_000, monkeypatch=monkeypatch) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(": File name too long")
