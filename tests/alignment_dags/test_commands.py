"""Recipes by name and derived, files that are not there, a first recipe, the doctor, and lines that move."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignment.errors import BadInput
from alignment.progress import Pace, ProgressLog, duration, place_of
from alignment.recipe import load_recipe
from alignment.store import Artifact, Ref
from alignment_dags.check import check_suites, not_there_yet
from alignment_dags.cli import main, output
from alignment_dags.cli.app import app
from alignment_dags.cli.setup import recipes_check
from alignment_dags.recipes import derive, recipe_file, recipe_names, recipes_in_use
from alignment_dags.ui import choose_recipes
from eval.suites.ifbench import instructions
from resources.home import PROJECT
from resources.pools import Pools, load_pools
from resources.store import ArtifactStore
from tests import tiny

POLICY = "policy_checkpoint"
EMBEDDED = {"embedded": "micro"}
SMALL = {
    "name": "small",
    "base_model": EMBEDDED,
    "sft": {"dataset": EMBEDDED, "max_length": 256},
    "preferences": EMBEDDED,
    "tokens": {"max_length": 256},
}
QUICKSTART = PROJECT / "recipes" / "quickstart.yaml"
Align = Callable[..., tuple[int, dict[str, Any], str]]


def write(path: Path, **more: Any) -> Path:
    path.write_text(yaml.safe_dump({**SMALL, **more}), encoding="utf-8")
    return path


# Recipes by name.


def test_a_recipe_is_found_by_its_name_wherever_it_is_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert recipe_file(Path("quickstart")) == QUICKSTART
    path = write(tmp_path / "other.yaml", name="mine")
    monkeypatch.setenv("ALIGN_RECIPES", str(tmp_path / "*.yaml"))
    assert recipe_file(Path("mine")) == path
    with pytest.raises(BadInput, match=r"^mnie: no such recipe: .*; did you mean mine\?$"):
        recipe_file(Path("mnie"))
    with pytest.raises(BadInput, match=r"recipes are mine$"):
        recipe_file(Path("quickstart"))
    with pytest.raises(BadInput, match=r"^mnie\.yaml: no such recipe; did you mean mine\?$"):
        recipe_file(Path("mnie.yaml"))
    with pytest.raises(BadInput, match=r"othr\.yaml: no such recipe; did you mean other\.yaml\?$"):
        load_recipe(recipe_file(tmp_path / "othr.yaml"))


def test_recipe_names_complete_by_tab(tmp_path: Path) -> None:
    """As bash asks for it, with nothing heavy imported."""
    environment = {**os.environ, "_ALIGN_COMPLETE": "complete_bash", "COMP_WORDS": "align run qui", "COMP_CWORD": "2"}
    code = (
        "import sys; sys.argv = ['align']\n"
        "from alignment_dags.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'dagster', 'mlflow') if name in sys.modules], file=sys.stderr)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert told.stdout.split() == ["quickstart"]
    assert told.stderr.strip() == "[]"


def test_the_completion_can_be_shown_for_installation(align_command: list[str]) -> None:
    environment = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    told = subprocess.run(
        [*align_command, "--show-completion", "bash"], capture_output=True, text=True, check=True, env=environment
    )
    assert "complete" in told.stdout


# Derived recipes.


def test_a_derived_recipe_changes_only_what_it_says_and_nights_do_not_see_it(home: Path, tmp_path: Path) -> None:
    base = write(
        tmp_path / "r.yaml",
        dpo={"beta": 0.1, "epochs": 2},
        schedule={"cron": "0 2 * * *"},
        registry={"model_name": "our model", "smoke_prompt": "Hi"},
    )
    path = derive(base, ["dpo.beta=0.5", "dpo.loss=ipo", "tokens.max_length=77", "held_out_fraction=0"], "warmer")
    recipe, before = load_recipe(path), load_recipe(base)
    assert (recipe.name, recipe.model_name, recipe.schedule) == ("warmer", "warmer", None)
    assert (recipe.dpo.beta, recipe.dpo.loss, recipe.dpo.epochs) == (0.5, "ipo", 2)
    assert (recipe.tokens.max_length, recipe.held_out_fraction) == (77, 0)
    assert recipe.registry.smoke_prompt == "Hi" and recipe.preferences == before.preferences
    assert path not in recipes_in_use() and recipe_names()["warmer"] == path
    assert path.is_relative_to(home / "align")
    assert load_recipe(path).experiment == load_recipe(base).name, "beside the runs of the recipe that it comes from"
    assert "--set dpo.beta=0.5" in path.read_text(encoding="utf-8")
    assert derive(base, ["dpo.beta=0.6"], "warmer") == path, "the same name again is the same recipe, changed"


def test_either_spelling_of_a_section_changes_the_one_that_the_recipe_has(tmp_path: Path) -> None:
    base = write(tmp_path / "r.yaml", dpo={"beta": 0.1})
    assert load_recipe(derive(base, ["optimise.beta=0.5"], "other")).dpo.beta == 0.5


@pytest.mark.parametrize(
    ("section", "change", "loss"),
    [
        ("dpo", "optimise.method=kto", "kto"),
        ("dpo", "optimise.method=dpo", "sigmoid"),
        ("dpo", "optimise.method=robust_dpo", "robust"),
        ("optimise", "dpo.loss=robust", "robust"),
        ("optimise", "dpo.loss=ipo", "ipo"),
    ],
)
def test_a_method_is_set_by_the_name_of_either_spelling(section: str, change: str, loss: str, tmp_path: Path) -> None:
    smoothed = {"label_smoothing": 0.1} if loss == "robust" else {"beta": 0.2}
    before = {"loss": "cdpo"} if section == "dpo" else {"method": "cdpo"}
    base = write(tmp_path / "r.yaml", **{section: {**before, "label_smoothing": 0.2}})
    clear = [] if loss == "robust" else [f"{section}={{beta: 0.2}}"]
    key, value = next(iter(smoothed.items()))
    recipe = load_recipe(derive(base, [*clear, change, f"{section}.{key}={value}"], "other"))
    assert recipe.dpo.loss == loss and getattr(recipe.dpo, key) == value


@pytest.mark.parametrize(
    ("section", "change", "right"),
    [
        ("dpo", "optimise.length_normalised=true", "set dpo.loss=sigmoid_norm"),
        ("optimise", "dpo.loss=sigmoid_norm", "set optimise.method=dpo and optimise.length_normalised=true"),
        ("optimise", "dpo.length_normalised=true", "set optimise.method=dpo and"),
    ],
)
def test_what_the_other_spelling_means_otherwise_is_not_set(
    section: str, change: str, right: str, home: Path, tmp_path: Path
) -> None:
    """`dpo: {length_normalised: true}` is DPO's default there, and per-token DPO in `optimise`."""
    with pytest.raises(BadInput, match=right):
        derive(write(tmp_path / "r.yaml", **{section: {"beta": 0.2}}), [change], "x")


def test_a_value_over_several_lines_is_in_the_recipe_once(tmp_path: Path) -> None:
    base = write(tmp_path / "r.yaml", dpo={"beta": 0.1})
    path = derive(base, ["dpo.beta=0.5", "description='two\n\n  lines'"], "other")
    assert (load_recipe(path).description, load_recipe(path).dpo.beta) == ("two\nlines", 0.5)


def test_a_link_of_a_chain_is_named_by_its_place(home: Path, tmp_path: Path) -> None:
    base = write(tmp_path / "r.yaml", optimise=[{"method": "dpo"}, {"method": "simpo", "gamma_ratio": 0.3}])
    links = load_recipe(derive(base, ["optimise.1.gamma_ratio=0.7", "optimise.0.lora.rank=4"], "other")).links
    assert links[1].gamma_ratio == 0.7 and links[0].lora is not None and links[0].lora.rank == 4
    for change in ("optimise.2.beta=1", "optimise.beta=1", "dpo.beta=1"):
        with pytest.raises(BadInput, match="optimise is a list: name one of 0 to 1"):
            derive(base, [change], "other")


@pytest.mark.parametrize(
    ("change", "name", "told"),
    [
        ("dpo.beta", "x", "'dpo.beta': expected KEY=VALUE"),
        ("=1", "x", "expected KEY=VALUE"),
        ("dpo.bata=1", "x", "field 'dpo.bata': unknown key; did you mean beta?"),
        ("seed.x=1", "x", "'seed.x=1': seed is no section"),
        ("dpo.beta=[1", "x", "the value is no YAML"),
        ("dpo.beta=1", "quickstart", "is the name of"),
        ("dpo.beta=1", "Two Words", "field 'name': is not of the right form"),
    ],
)
def test_a_change_that_makes_no_recipe_is_refused_and_leaves_nothing(
    change: str, name: str, told: str, home: Path, tmp_path: Path
) -> None:
    with pytest.raises(BadInput) as refused:
        derive(write(tmp_path / "r.yaml", seed=3), [change], name)
    assert told in str(refused.value)
    assert not list((home / "align").glob("recipes/*"))


def test_set_and_as_go_together(align: Align) -> None:
    code, _, error = align("run", "quickstart", "--set", "dpo.beta=0.5")
    assert code == 2 and "--set and --as go together" in error


# `align recipes check` finds what is not there.


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"preferences": {"files": ["no/pairs.jsonl"]}}, "field 'preferences.files': no/pairs.jsonl: no such file"),
        ({"preferences": {"files": ["no/*.jsonl"]}}, "field 'preferences.files': no/*.jsonl: "),
        (
            {"sft": {"dataset": {"files": ["no/chats.jsonl"]}}},
            "'sft.dataset.files': no/chats.jsonl: no such file",
        ),
        ({"base_model": {"path": "no/model"}}, "field 'base_model.path': no/model: no such folder"),
        ({"sft": {"adopt": {"path": "no/sft"}}}, "field 'sft.adopt.path': no/sft: no such folder"),
        (
            {"base_model": EMBEDDED | {"chat_template": "no.jinja"}},
            "base_model.chat_template': no.jinja: no such file",
        ),
        ({"pools": {"policy": "h10"}}, "field 'pools.policy': no pool 'h10'; pools.yaml has h100, h100_node, local"),
    ],
)
def test_a_check_names_the_key_of_what_is_not_there(
    more: dict[str, Any],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write(tmp_path / "r.yaml", **more)
    monkeypatch.setattr(sys, "argv", ["align", "recipes", "check", str(path)])
    with pytest.raises(SystemExit, match="2"):
        main()
    out, error = capsys.readouterr()
    assert out == "" and error.startswith(f"error: {path}, ") and told in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("more", "beside", "told"),
    [
        (
            {"preferences": {"files": ["{0}/my_pair.jsonl"]}},
            "my_pairs.jsonl",
            "{0}/my_pair.jsonl, field 'preferences.files': no such file; did you mean my_pairs.jsonl?",
        ),
        (
            {"preferences": {"files": ["{0}/my_pair*.json"]}},
            "my_pairs.jsonl",
            "{0}/my_pair*.json, field 'preferences.files': matches no file",
        ),
        (
            {"sft": {"dataset": {"files": ["{0}/my_chat.jsonl"]}, "max_length": 256}},
            "my_chats.jsonl",
            "{0}/my_chat.jsonl, field 'sft.dataset.files': no such file; did you mean my_chats.jsonl?",
        ),
        (
            {"base_model": {"path": "{0}/my_modle"}},
            "my_model",
            "{0}/r.yaml, field 'base_model.path': {0}/my_modle: no such folder; did you mean my_model?",
        ),
        (
            {"sft": {"adopt": {"path": "{0}/my_modle"}}},
            "my_model",
            "{0}/r.yaml, field 'sft.adopt.path': {0}/my_modle: no such folder; did you mean my_model?",
        ),
    ],
)
def test_a_plan_names_the_key_of_a_missing_path_and_what_lies_beside_it(
    more: dict[str, Any], beside: str, told: str, tmp_path: Path, align: Align
) -> None:
    (tmp_path / beside).touch()
    path = write(tmp_path / "r.yaml", **json.loads(json.dumps(more).replace("{0}", str(tmp_path))))
    code, _, error = align("plan", str(path))
    assert code == 2 and error == f"error: {told.replace('{0}', str(tmp_path))}\n"


def test_files_of_the_suites_that_are_not_there_yet_are_noted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "r.yaml", evals={"ifeval": {"data": "no/input_data.jsonl"}})
    recipes_check([path])
    assert capsys.readouterr().err == f"note: {path}: evals.ifeval.data: not there yet: no/input_data.jsonl\n"


ANSWERED = {"kind": "vllm", "command": "no-vllm serve {folder} --port {port} --name {name}"}
JUDGED = {"judge": {"kind": "openai", "model": "m", "api_key_env": "NO_SUCH_KEY"}}


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (JUDGED, ["judge.api_key_env: NO_SUCH_KEY is not set"]),
        ({"judge": JUDGED["judge"] | {"base_url": "http://127.0.0.1:9/v1"}}, []),
        ({"evals": {"generate": ANSWERED}}, ["evals.generate.command: no program no-vllm here"]),
    ],
)
def test_a_key_and_a_program_that_a_later_step_needs_are_noted(
    more: dict[str, Any], told: list[str], tmp_path: Path
) -> None:
    recipe = load_recipe(write(tmp_path / "r.yaml", **more))
    assert not_there_yet(recipe, load_pools()) == told
    remote = load_pools().pools["local"].model_copy(update={"launcher": "ray"})
    there = Pools(pools=load_pools().pools | {"local": remote})
    assert not_there_yet(recipe, there) == [line for line in told if "program" not in line], "it is not looked for here"


@pytest.mark.parametrize(
    ("suite", "told"),
    [
        ("humaneval", "lm-eval's humaneval runs the code that a model writes, which is not supported"),
        ("no_such_task", "no suite 'no_such_task': lm-eval has no task or group of this name"),
    ],
)
def test_a_suite_that_could_not_be_asked_is_refused_before_anything_is_trained(
    suite: str, told: str, tmp_path: Path, align: Align, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "items.jsonl").touch()
    data = {"data": str(tmp_path / "items.jsonl")}
    path = write(tmp_path / "r.yaml", evals={"lm_eval": {suite: data}})
    said = f"{path}, field 'evals.lm_eval.{suite}': {told}"
    for verb in ("plan", "run"):
        code, _, error = align(verb, str(path))
        assert code == 2 and f"error: {said}" in error
    with pytest.raises(BadInput, match=re.escape(said)):
        recipes_check([path])
    path = write(tmp_path / "r.yaml", evals={"ifbench": data})
    monkeypatch.setattr("eval.suites.ifbench.REGISTRY", "no_such_package")
    instructions.cache_clear()
    with pytest.raises(BadInput, match=r"field 'evals\.ifbench': .*: pip install if-verifiable"):
        check_suites(load_recipe(path), str(path))


# A first recipe.


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny.write_model(tmp_path / "model", tiny.byte_tokenizer(pad=True), "llama", max_position_embeddings=300)


def pairs(path: Path, rows: int = 40, **more: Any) -> Path:
    made = [{"prompt": f"p{n}", "chosen": f"good {n}", "rejected": f"bad {n}"} | more for n in range(rows)]
    path.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
    return path


def test_init_writes_a_recipe_that_fits_model_and_data_and_passes_the_check(
    model: Path, tmp_path: Path, align: Align, align_command: list[str]
) -> None:
    data = pairs(tmp_path / "2026 my-Pairs.jsonl")
    out = tmp_path / "mine.yaml"
    code, told, error = align("init", str(model), str(data), "--out", str(out))
    assert code == 0, error
    assert (told["name"], told["method"], told["kind"], told["rows"]) == ("my_pairs", "dpo", "paired", 40)
    assert any(line.startswith("policy_checkpoint ") and line.endswith(" MiB") for line in told["plan"])
    recipe = load_recipe(out)
    assert recipe.sft.adopt is not None and recipe.sft.adopt.path == str(model)
    assert recipe.tokens.max_length == 300 and recipe.dpo.precision == recipe.reference.precision == "float32"
    assert recipe.held_out_fraction == 0.3 and recipe.dpo.batch_size == 5, "of few rows enough to see something"
    done = subprocess.run([*align_command, "recipes", "check", str(out)], capture_output=True, text=True, check=True)
    assert done.stdout == f"{out}: my_pairs is well-formed\n"
    before = out.read_text()
    code, _, error = align("init", str(model), str(data), "--out", str(out))
    assert code == 2 and "is there already, and is not overwritten" in error
    assert out.read_text() == before


def test_init_takes_columns_and_says_which_are_meant(model: Path, tmp_path: Path, align: Align) -> None:
    data, out = tmp_path / "my thumbs.jsonl", tmp_path / "thumbs.yaml"
    rows = [{"question": f"q{n}", "reply": f"r{n}", "feedback": ("up", "down")[n % 2]} for n in range(12)]
    data.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"question": "q"}]), encoding="utf-8")
    arguments = ("init", str(model), str(data), "--out", str(out))
    code, _, error = align(*arguments)
    assert code == 2 and "{prompt: question, completion: reply, label: feedback}, here with --column" in error
    given = [part for one in ("prompt=question", "completion=reply", "label=feedback") for part in ("--column", one)]
    code, told, error = align(*arguments, *given)
    assert (code, told["method"], told["rows"], told["quarantined"]) == (0, "kto", 12, 1), error
    assert told["checks"] == f"align prefs check {out}", "which knows the columns"
    assert load_recipe(out).preferences.columns == {
        "prompt": "question",
        "completion": "reply",
        "label": "feedback",
    }
    for wrong, why in (("promt=q", "did you mean prompt?"), ("prompt", "expected NAME=COLUMN")):
        code, _, error = align(*arguments, "--column", wrong)
        assert code == 2 and "'--column'" in error and why in error


def test_init_writes_plain_texts_in_the_template_of_a_chat_model(model: Path, tmp_path: Path, align: Align) -> None:
    texts = pairs(tmp_path / "texts.jsonl")
    sides = {side: [{"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    chats = tmp_path / "chats.jsonl"
    chats.write_text(
        "".join(json.dumps({"prompt": [{"role": "user", "content": f"p{n}"}]} | sides) + "\n" for n in range(9))
    )
    expected = [(model, texts, "as_is"), ("micro", texts, "chat"), ("micro", chats, "as_is")]
    for number, (named, data, written) in enumerate(expected):
        out = tmp_path / f"{number}.yaml"
        code, _, error = align("init", str(named), str(data), "--name", "mine", "--out", str(out))
        assert code == 0, error
        assert load_recipe(out).tokens.plain_text == written
    code, _, error = align("init", "owner/instruct", str(texts), "--name", "mine", "--out", str(tmp_path / "hub.yaml"))
    assert code == 0, error
    assert "# plain_text: chat # for a model with a chat template" in (tmp_path / "hub.yaml").read_text()


def chats(path: Path, rows: int = 40) -> Path:
    sides = {side: [{"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    path.write_text(
        "".join(json.dumps({"prompt": [{"role": "user", "content": f"p{n}"}]} | sides) + "\n" for n in range(rows)),
        encoding="utf-8",
    )
    return path


def demonstrations(path: Path, rows: int = 40) -> Path:
    path.write_text(json.dumps([{"instruction": f"q{n}", "output": f"a{n}"} for n in range(rows)]), encoding="utf-8")
    return path


def test_init_gives_lengths_and_a_chat_template_that_the_model_can_be_trained_with(
    model: Path, tmp_path: Path, align: Align
) -> None:
    from jinja2 import Environment

    rows, sft, texts = chats(tmp_path / "p.jsonl"), demonstrations(tmp_path / "sft.json"), pairs(tmp_path / "t.jsonl")
    cases = {"adopted": (rows,), "trained": (rows, "--sft", sft), "texts": (texts, "--sft", sft)}
    for name, arguments in cases.items():
        out = tmp_path / f"{name}.yaml"
        code, _, error = align("init", str(model), *map(str, arguments), "--name", name, "--out", str(out))
        assert code == 0, error
        recipe = load_recipe(out)
        assert recipe.sft is not None and recipe.tokens.max_length == 300
        start = recipe.sft.adopt or recipe.base_model
        assert start.path == str(model) and start.chat_template is not None
        assert recipe.sft.adopt is not None or recipe.sft.max_length == 300
        assert recipe.tokens.plain_text == ("chat" if name == "texts" else "as_is")
        template = Environment().from_string(start.chat_template)
        asked = [{"role": "user", "content": "Hi"}]
        answered = [*asked, {"role": "assistant", "content": "Ho"}]
        prompt = template.render(messages=asked, add_generation_prompt=True, eos_token="<e>")
        whole = template.render(messages=answered, add_generation_prompt=False, eos_token="<e>")
        assert whole == f"{prompt}Ho<e>" == "\n\nUser: Hi\n\nAssistant: Ho<e>", "an answer ends as one"
        assert align("plan", str(out))[0] == 0
    code, _, error = align("init", str(model), str(texts), "--name", "as_is", "--out", str(tmp_path / "as_is.yaml"))
    assert code == 0, error
    assert "chat_template" not in (tmp_path / "as_is.yaml").read_text(), "the rows are plain texts"
    code, _, error = align("init", "micro", str(rows), "--name", "micro", "--out", str(tmp_path / "micro.yaml"))
    assert code == 0 and load_recipe(tmp_path / "micro.yaml").tokens.max_length == 256, error


TOO_LONG = "301 tokens are more than the model's 300 positions; 300 is the most here"
NONE = (
    "rows are conversations and the tokenizer has no chat template: give the model one in the recipe, such as chat_temp"
)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"sft": {"dataset": {"files": ["sft.json"]}, "max_length": 301}}, f"field 'sft.max_length': {TOO_LONG}"),
        ({"tokens": {"max_length": 301}}, f"field 'tokens.max_length': {TOO_LONG}"),
        (
            {"sft": {"adopt": {"path": "model"}}, "tokens": {"max_length": 301}},
            f"field 'tokens.max_length': {TOO_LONG}",
        ),
        ({"base_model": EMBEDDED}, "field 'tokens.max_length': 300 tokens are more than the model's 256 positions"),
        ({"sft": {"dataset": {"files": ["sft.json"]}, "max_length": 300}}, f"field 'base_model.chat_template': {NONE}"),
        ({"preferences": {"files": ["chats.jsonl"]}}, f"field 'base_model.chat_template': {NONE}"),
        (
            {"sft": {"adopt": {"path": "model"}}, "preferences": {"files": ["chats.jsonl"]}},
            f"field 'sft.adopt.chat_template': {NONE}",
        ),
        ({"tokens": {"max_length": 300, "plain_text": "chat"}}, f"field 'base_model.chat_template': {NONE}"),
        (
            {"evals": {"reward_bench_2": {"hub": "a/b", "split": "test", "chat_template": True}}},
            "field 'evals.reward_bench_2.chat_template': the tokenizer has no chat template: leave this out, or under",
        ),
    ],
)
def test_check_and_plan_refuse_what_the_models_own_files_rule_out(
    more: dict[str, Any],
    told: str,
    model: Path,
    tmp_path: Path,
    align: Align,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    pairs(tmp_path / "texts.jsonl"), chats(tmp_path / "chats.jsonl"), demonstrations(tmp_path / "sft.json")
    plain = {"files": ["plain.json"]}
    Path("plain.json").write_text(json.dumps([{"prompt": f"q{n}", "completion": f"a{n}"} for n in range(9)]))
    sound = {
        "base_model": {"path": "model"},
        "sft": {"dataset": plain, "max_length": 256},
        "preferences": {"files": ["texts.jsonl"]},
        "tokens": {"max_length": 300},
    }
    write(tmp_path / "sound.yaml", **sound)
    assert align("plan", "sound.yaml")[0] == 0
    write(tmp_path / "r.yaml", **{**sound, **more})
    for verb in (["plan"], ["recipes", "check"]):
        monkeypatch.setattr(sys, "argv", ["align", *verb, "r.yaml"])
        with pytest.raises(SystemExit, match="2"):
            main()
        error = capsys.readouterr().err
        assert error.startswith(f"error: r.yaml, {told}") and error.count("\n") == 1


def test_init_names_the_schema_for_editors_only_within_the_project(
    model: Path, tmp_path: Path, align: Align, monkeypatch: pytest.MonkeyPatch
) -> None:
    import alignment_dags.start as starting

    data = pairs(tmp_path / "pairs.jsonl")
    code, _, error = align("init", str(model), str(data), "--out", str(tmp_path / "outside.yaml"))
    assert code == 0, error
    assert "$schema" not in (tmp_path / "outside.yaml").read_text()
    project = tmp_path / "project"
    (project / "recipes" / "ours").mkdir(parents=True)
    (project / "recipes" / "recipe.schema.json").write_text("{}")
    monkeypatch.setattr(starting, "PROJECT", project)
    for out, schema in (("recipes", "recipe.schema.json"), ("recipes/ours", "../recipe.schema.json")):
        code, _, error = align("init", str(model), str(data), "--out", str(project / out / "r.yaml"))
        assert code == 0, error
        first = (project / out / "r.yaml").read_text().partition("\n")[0]
        assert first == f"# yaml-language-server: $schema={schema}"


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("model", "no such folder, and no id on the hub"),
        ("data", "no valid row"),
        ("name", "'quickstart' is the name of"),
        ("empty", "no config.json"),
    ],
)
def test_init_refuses_what_makes_no_recipe_and_writes_nothing(
    what: str, told: str, model: Path, tmp_path: Path, align: Align
) -> None:
    data = pairs(tmp_path / "pairs.jsonl", **({"rejected": "same", "chosen": "same"} if what == "data" else {}))
    (tmp_path / "empty").mkdir()
    named = {"model": "/none/at/all", "empty": str(tmp_path / "empty")}.get(what, str(model))
    out = tmp_path / "mine.yaml"
    name = "quickstart" if what == "name" else "mine"
    code, _, error = align("init", named, str(data), "--name", name, "--out", str(out))
    assert code == 2 and told in error and error.count("\n") == 1
    assert not out.exists()


def test_a_recipe_file_is_a_recipe_also_for_compare_and_diff(tmp_path: Path, align: Align) -> None:
    files = [str(write(tmp_path / f"{name}.yaml", name=name)) for name in ("one", "two")]
    for verb in ("compare", "diff"):
        code, _, error = align(verb, *files)
        assert (code, error.count("\n")) == (2, 1)
        assert f"recipe one has no policy yet; run `align run {files[0]}` first" in error


def test_a_folder_of_a_model_is_no_side_of_a_comparison_and_no_recipe(
    model: Path, tmp_path: Path, align: Align, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = str(write(tmp_path / "one.yaml", name="one"))
    told = (
        ": is the folder of a model, not a recipe, MODEL@VERSION or samples file; a model is compared by what a recipe"
    )
    for verb, sides in (
        ("compare", (str(model), str(model))),
        ("compare", (recipe, str(model))),
        ("diff", (str(model), recipe)),
    ):
        code, _, error = align(verb, *sides)
        assert (code, error.count("\n")) == (2, 1) and (
            f"{model}{told}" in error or "recipe one has no policy" in error
        )
    assert "is the folder" in align("compare", recipe, str(model))[2], "said before the recipe's own want"
    monkeypatch.chdir(tmp_path)
    code, _, error = align("plan", "model")
    assert (code, error) == (2, "error: model: is a folder, not a recipe\n")


@pytest.mark.parametrize(
    "verb", [("export", "--to", "out"), ("path",), ("card",), ("lineage",), ("lineage", "--from", "mlflow")]
)
def test_a_recipe_that_registers_nothing_is_named_as_the_cause(
    verb: tuple[str, ...], tmp_path: Path, align: Align, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "one.yaml", name="one")
    monkeypatch.setenv("ALIGN_RECIPES", str(path))
    told = "recipe one registers nothing: gate: none; it has no policy yet"
    for named in ("one", "one@2", str(path)):
        code, _, error = align(verb[0], named, *verb[1:])
        assert (code, error.count("\n")) == (2, 1) and told in error, error
    store = ArtifactStore().open()
    store.write_ref(Ref(artifact=Artifact(kind=POLICY, key="k", attempt="a", digest="d")), "one", POLICY)
    code, _, error = align(verb[0], "one", *verb[1:])
    by_hand = "; `align promote one --override --reason WHY` registers it\n"
    assert code == 2 and f"gate: none; its policy is at {store.path(POLICY, 'k', 'a')}{by_hand}" in error
    store.remove_ref("one", POLICY)
    write(path, name="one", gate="default", registry={"model_name": "ours"})
    code, _, error = align(verb[0], "ours", *verb[1:])
    assert code == 2 and "recipe one has registered nothing yet; it has no policy yet" in error


# The doctor.


def test_the_doctor_finds_nothing_in_a_new_home_and_says_so(
    tmp_path: Path, align: Align, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGN_RECIPES", str(write(tmp_path / "r.yaml")))
    code, told, _ = align("doctor")
    assert code == 0 and told["ok"], told
    what = {one["what"]: one for one in told["findings"]}
    assert {"versions", "ALIGN_HOME", "DAGSTER_HOME", "disk", "store", "mlflow", "dagster", "recipes"} <= what.keys()
    assert what["pool limits"]["remedy"] == "run `align pools apply`"


def test_the_doctor_finds_nothing_bad_in_shipped_recipes_that_nobody_ran(
    align: Align, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new clone is whole, though some of its examples name data of which there is none here, and one has a night."""
    monkeypatch.setenv("ALIGN_TEST_DATA", "/nowhere")
    code, told, error = align("doctor")
    assert code == 0 and told["ok"], error
    notes = [one["told"] for one in told["findings"] if (one["what"], one["state"]) == ("recipe", "note")]
    assert any("stories260k_hh.yaml" in note for note in notes)


def test_the_doctor_names_what_is_broken_with_the_remedy_and_looks_on(
    tmp_path: Path, align: Align, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.yaml", name="a", preferences={"files": ["no.jsonl"]})
    write(tmp_path / "b.yaml", name="b", schedule={"cron": "0 2 * * *"}, judge={"kind": "openai", "model": "m"})
    monkeypatch.setenv("ALIGN_RECIPES", str(tmp_path / "*.yaml"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter2@127.0.0.1:9")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    code, told, _ = align("doctor", "--judge")
    assert code == 1 and not told["ok"]
    bad = {one["what"]: one for one in told["findings"] if one["state"] == "bad"}
    assert bad.keys() == {"mlflow", "daemon", "recipe", "judge"}
    assert "no.jsonl: no such file" in bad["recipe"]["told"] and "align recipes check" in bad["recipe"]["remedy"]
    assert "b has a schedule" in bad["daemon"]["told"]
    assert "OPENAI_API_KEY is not set" in bad["judge"]["told"]
    assert "hunter2" not in json.dumps(told)


# Lines that move, and colours.


class Screen:
    """A stream that keeps what is written, and says whether it is a terminal."""

    def __init__(self, terminal: bool) -> None:
        self.terminal, self.text = terminal, ""

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None:
        """Nothing waits to be written."""

    def isatty(self) -> bool:
        return self.terminal


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], Screen]:
    def show(terminal: bool) -> Screen:
        made = Screen(terminal)
        monkeypatch.setattr(sys, "stderr", made)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "30")
        monkeypatch.delenv("NO_COLOR", raising=False)
        monkeypatch.setattr(output, "_moved", {"width": 0, "at": -1e9})
        return made

    return show


def test_a_line_moves_on_a_terminal_and_is_followed_by_lines_that_stay(screen: Callable[[bool], Screen]) -> None:
    made = screen(True)
    for line in ("begins", "\rstep 1/9", "\rstep 2/9 " + "x" * 40, "ends"):
        output.say(line)
    clear = "\r\x1b[K"
    assert made.text == f"begins\nstep 1/9{clear}{('step 2/9 ' + 'x' * 40)[:29]}{clear}ends\n"


def test_a_long_line_is_broken_on_a_terminal_behind_where_it_begins(screen: Callable[[bool], Screen]) -> None:
    line = "    manifest: the guard small of manifest is red\n      it saw: a " + "word " * 6
    made = screen(True)
    output.say(line)
    lines = made.text.splitlines()
    assert max(map(len, lines)) <= 30 and " ".join(made.text.split()) == " ".join(line.split())
    assert [len(one) - len(one.lstrip()) for one in lines] == [4, 6, 6, 8], made.text
    log = screen(False)
    output.say(line)
    assert log.text == f"{line}\n"


def test_a_table_that_is_wider_than_the_terminal_has_cells_of_several_lines() -> None:
    row = ("gsm8k", "exact_match,flexible-extract", "1,319", "[-0.0073, +0.0287]", "equivalent")
    header = ("suite", "metric", "n", "95 % interval", "verdict")
    assert output.columns(header, [row]).count("\n") == 1, "where nobody says how wide it may be, as in a file"
    assert output.columns(header, [row], 80) == output.columns(header, [row])
    lines = output.columns(header, [row], 60).splitlines()
    assert max(map(len, lines)) <= 60
    assert [line.split() for line in lines[1:]] == [
        ["gsm8k", "exact_match,", "1,319", "[-0.0073,", "equivalent"],
        ["flexible-extract", "+0.0287]"],
    ]
    told = ("ok", "ALIGN_HOME", "a sentence of many words that does not fit into one line of the terminal")
    wide = output.columns(("", "what", "found"), [told], 50).splitlines()
    assert wide[1].startswith("ok  ALIGN_HOME  a sentence") and len(wide) == 4, "a column of sentences gives first"
    narrow = output.columns(header, [row], 10).splitlines()
    assert len(narrow) > 3 and any("flexible-extract" in line for line in narrow), "nothing is cut within a name"
    indented = output.columns(("", "found"), [("  seconds in all", "1")], 14).splitlines()
    assert [line.split("  1")[0].rstrip() for line in indented[1:]] == ["  seconds", "in all"]


def test_an_address_of_this_machine_is_shown_as_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert output.place(f"file://{tmp_path}/store/a") == "store/a"
    assert output.place("file:///elsewhere/a") == "/elsewhere/a"
    assert output.place("s3://bucket/a") == "s3://bucket/a"


def test_in_a_log_a_moving_line_is_a_line_and_many_are_one(screen: Callable[[bool], Screen]) -> None:
    made = screen(False)
    for line in ("begins", "\rstep 1/9", "\rstep 2/9", "ends"):
        output.say(line)
    assert made.text == "begins\nstep 1/9\nends\n"


def test_words_of_judgment_are_coloured_on_a_terminal_only(
    screen: Callable[[bool], Screen], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: Any = screen(True)
    assert output.painted("ok    store\nmetric  improved", made) == (
        "\x1b[32mok\x1b[0m    store\nmetric  \x1b[32mimproved\x1b[0m"
    )
    assert output.painted("the improved metric", made) == "the improved metric"
    monkeypatch.setenv("NO_COLOR", "1")
    assert output.painted("ok", made) == "ok"
    monkeypatch.delenv("NO_COLOR")
    plain: Any = screen(False)
    assert output.painted("ok", plain) == "ok"


@pytest.mark.parametrize(
    ("message", "place"),
    [
        ("step 688/828, loss 0.0508", (688, 828)),
        ("judge: 3 of 80", (3, 80)),
        ("sequences scored: 512 of 4096", (512, 4096)),
        ("resuming from step 20", None),
        ("made file:///store/a/1/2", None),
        ("ifeval: 250 answered, 0 failed, 3.1 s", None),
        ("9 of 3", None),
    ],
)
def test_how_far_a_stage_is_stands_in_its_lines(message: str, place: tuple[int, int] | None) -> None:
    assert place_of(message) == place


def test_the_time_left_follows_the_pace_since_the_first_line() -> None:
    pace = Pace()
    assert pace.left(100, 1000, at=50.0) is None
    assert pace.left(200, 1000, at=60.0) == 80.0
    assert pace.left(1000, 1000, at=140.0) == 0.0
    assert pace.left(5, 1000, at=141.0) is None, "another loop has begun"
    assert [duration(seconds) for seconds in (8.4, 600, 12345)] == ["8 s", "10 min", "3.4 h"]


def test_a_long_loop_logs_now_and_then_and_a_short_one_never(caplog: pytest.LogCaptureFixture) -> None:
    times = iter([0.0, 1.0, 6.0, 10.0])
    with caplog.at_level("INFO"):
        log = ProgressLog(logging.getLogger("alignment"), "rows", 40, clock=lambda: next(times))
        for _ in range(3):
            log.add(10)
    assert caplog.messages == ["rows: 20 of 40"]


def test_a_recipe_that_align_recipes_names_and_is_not_there_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ALIGN_RECIPES", f"{QUICKSTART}:{tmp_path / 'none.yaml'}")
    with pytest.raises(BadInput, match="no such file") as raised:
        recipes_in_use()
    assert (raised.value.file, raised.value.field) == (str(tmp_path / "none.yaml"), "ALIGN_RECIPES")
    with pytest.raises(BadInput, match="no such file"):
        choose_recipes(ArtifactStore().open())  # before a server starts, which would show an empty page
    for place in (tmp_path, tmp_path / "*.yaml"):
        monkeypatch.setenv("ALIGN_RECIPES", str(place))
        assert recipes_in_use() == {}, "a folder may be empty"
    own = write(tmp_path / "own.yaml")
    monkeypatch.setenv("ALIGN_RECIPES", f"{tmp_path}:")
    assert [*recipes_in_use()] == [own.resolve()]


def test_help_shows_every_bracket_of_its_texts() -> None:
    """Rich would read `[text]` as markup and leave it out."""
    import typer

    def texts(command: Any) -> Iterator[str]:
        yield command.help or ""
        yield from (parameter.help or "" for parameter in command.params if hasattr(parameter, "help"))
        for inner in getattr(command, "commands", {}).values():
            yield from texts(inner)

    assert [text for text in texts(typer.main.get_command(app)) if re.search(r"\[[a-z]", text)] == []
