"""The command's doors: every verb, its options, and how errors and results leave.

Exit 0 done, 1 the work failed or a gate said no, 2 bad input (one line on stderr).
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

from alignment.errors import BadInput

app = typer.Typer(
    name="align",
    help="Keeps a language model aligned with people's preferences.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
prefs = typer.Typer(help="Preference data.", no_args_is_help=True)
pools = typer.Typer(help="Compute pools.", no_args_is_help=True)
recipes = typer.Typer(help="Recipes.", no_args_is_help=True)
app.add_typer(prefs, name="prefs")
app.add_typer(pools, name="pools")
app.add_typer(recipes, name="recipes")

# by name, as their modules are too heavy for a command that may not need them
FAILURES = ("MissingArtifact", "ErasedArtifact", "CorruptArtifact", "WrongEvidence", "JudgeUnavailable", "RunFailed")

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")]


def main() -> None:
    """Entry point of `align`."""
    try:
        sys.exit(app(standalone_mode=False) or 0)  # the code of a typer.Exit; commands themselves return nothing
    except typer.Abort:
        sys.exit(130)
    except BadInput as error:
        sys.exit(_refused(str(error)))
    except Exception as error:
        if hasattr(error, "format_message"):  # the parser's own: unknown option, missing argument
            if told := error.format_message():
                _refused(told)
            sys.exit(2)  # a bare group has shown its help and has nothing to add
        if type(error).__name__ in FAILURES:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            sys.exit(1)
        raise


def _refused(message: str) -> int:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return 2


@contextmanager
def stdout_kept() -> Iterator[None]:
    """Keeps stdout for results: whatever libraries and child processes print meanwhile goes to stderr."""
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)


def _tell(work: Callable[[], dict[str, Any]], as_json: bool, show: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    with stdout_kept():
        result = work()
    if as_json:
        print(json.dumps(result, ensure_ascii=False, sort_keys=True, allow_nan=False))
    else:
        show(result)
    return result


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _quiet() -> None:
    """Libraries' chatter off, our own progress on stderr."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    for name in ("alignment", "eval"):
        logging.getLogger(name).setLevel(logging.INFO)


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="Recipe (YAML).")],
    as_json: AsJson = False,
) -> None:
    """Bring a recipe up to date: what changed is made again, and no more."""
    from alignment_dags.cli.outcome import show_outcome, summary_of
    from alignment_dags.run import run_recipe

    result = _tell(lambda: summary_of(run_recipe(recipe, _say)), as_json, show_outcome)
    if result["failure"] is not None:
        raise typer.Exit(1)


@app.command()
def backfill(
    recipe: Annotated[Path, typer.Argument(help="Recipe (YAML).")],
    shards: Annotated[str | None, typer.Option(help="Names, with commas between; all shards by default.")] = None,
    first: Annotated[str | None, typer.Option("--from", help="First shard of a stretch (source order).")] = None,
    last: Annotated[str | None, typer.Option("--to", help="Last shard of the stretch.")] = None,
    stage: Annotated[str | None, typer.Option(help="preference_shard or reference_logprobs; both by default.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make any set of shards that are behind: safe to repeat, to interrupt, and to run beside the night."""
    from alignment_dags.backfill import Chosen, run_backfill
    from alignment_dags.cli.tables import show_backfill

    names = tuple(name.strip() for name in shards.split(",") if name.strip()) if shards is not None else None
    result = _tell(lambda: vars(run_backfill(recipe, Chosen(names, first, last), stage, _say)), as_json, show_backfill)
    if result["failures"]:
        raise typer.Exit(1)


@prefs.command("check")
def prefs_check(
    files: Annotated[list[str], typer.Argument(help="Preference files, globs, folders or URLs.")],
    as_json: AsJson = False,
) -> None:
    """Validate preference files: every row is accepted, or named with the reason. Exit 2 if none is accepted."""
    from alignment.preferences.check import check_files
    from alignment_dags.cli.tables import show_check

    if not _tell(lambda: check_files(files), as_json, show_check)["accepted"]:
        raise BadInput("no valid row", file=", ".join(files))


@prefs.command("find")
def prefs_find(
    recipe: Annotated[Path, typer.Argument(help="Recipe (YAML).")],
    text: Annotated[str, typer.Argument(help="Text to look for, as it stands in the row.")],
    as_json: AsJson = False,
) -> None:
    """The ids of a recipe's rows that hold a text, with the file and line each came from."""
    from alignment_dags.find_rows import find_rows, show_found
    from resources.home import ensure_home

    ensure_home()
    _tell(lambda: find_rows(recipe, text), as_json, show_found)


@prefs.command("withdraw")
def prefs_withdraw(
    recipe: Annotated[Path, typer.Argument(help="Recipe (YAML).")],
    row_ids: Annotated[list[str] | None, typer.Option("--row-id", help="Row id; repeat for more.")] = None,
    shards: Annotated[list[str] | None, typer.Option("--shard", help="Whole shard; repeat for more.")] = None,
    reason: Annotated[str, typer.Option(help="Why, without personal data: it is kept.")] = "",
    as_json: AsJson = False,
) -> None:
    """Take rows or shards out of a recipe for good: no later build uses them, `align gc` erases their text."""
    from alignment_dags.withdraw import show_withdrawal, withdraw
    from resources.home import ensure_home

    ensure_home()
    _tell(lambda: withdraw(recipe, row_ids or [], shards or [], reason), as_json, show_withdrawal)


@prefs.command("restore")
def prefs_restore(
    recipe: Annotated[Path, typer.Argument(help="Recipe (YAML).")],
    row_ids: Annotated[list[str] | None, typer.Option("--row-id", help="Row id; repeat for more.")] = None,
    shards: Annotated[list[str] | None, typer.Option("--shard", help="Whole shard; repeat for more.")] = None,
    as_json: AsJson = False,
) -> None:
    """Undo a withdrawal: the next run uses what the source still holds of it."""
    from alignment_dags.withdraw import restore, show_restored
    from resources.home import ensure_home

    ensure_home()
    _tell(lambda: restore(recipe, row_ids or [], shards or []), as_json, show_restored)


@app.command()
def reference(
    model: Annotated[Path, typer.Option(help="Checkpoint folder.")],
    pairs: Annotated[Path, typer.Option(help="File of preference pairs.")],
    out: Annotated[Path, typer.Option(help="Parquet file to write.")],
    max_length: Annotated[int | None, typer.Option(help="Most tokens of prompt and completion.")] = None,
    truncation: Annotated[str, typer.Option(help="drop, keep_start or keep_end.")] = "drop",
    precision: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    as_json: AsJson = False,
) -> None:
    """Score a file of pairs under a reference model; known sequences come from the cache."""
    from alignment.logprobs.files import reference_file
    from alignment_dags.cli.tables import show_fields
    from resources.home import ensure_home
    from resources.store import ArtifactStore

    _quiet()
    ensure_home()

    def work() -> dict[str, Any]:
        return reference_file(
            model,
            pairs,
            out,
            store=ArtifactStore().open(),
            max_length=max_length,
            truncation=truncation,
            precision=precision,
        )

    _tell(work, as_json, show_fields)


@app.command()
def score(
    suite: Annotated[
        str, typer.Argument(help="gsm8k, ifeval, mt_bench, alpaca_eval, …, xstest, or any task of lm-eval by name.")
    ],
    responses: Annotated[
        Path, typer.Option(help='JSONL of {"id", "turns": [text]}, or FastChat answers; GSM8K ids count lines from 0.')
    ],
    data: Annotated[Path, typer.Option(help="The suite's data file.")],
    judgments: Annotated[Path | None, typer.Option(help="Stored judgments of a judged suite.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for samples.parquet.")] = None,
    against: Annotated[Path | None, typer.Option(help="The baseline's answers, for judgments of pairs.")] = None,
    as_json: AsJson = False,
) -> None:
    """Score stored responses with the suite's own scorer."""
    from alignment_dags.cli.tables import show_score
    from eval.files import score_files

    _quiet()
    _tell(lambda: score_files(suite, responses, data, judgments, out, against), as_json, show_score)


@app.command()
def judge(
    suite: Annotated[str, typer.Argument(help="mt_bench, alpaca_eval, arena_hard or harmless.")],
    questions: Annotated[Path, typer.Option(help="The suite's question file.")],
    answers: Annotated[Path, typer.Option(help="The model's answers: FastChat's form or the suite's own.")],
    judge_model: Annotated[str, typer.Option(help="Model that judges.")],
    out: Annotated[Path, typer.Option(help="File of judgments; what it holds is not asked again.")],
    base_url: Annotated[str | None, typer.Option(help="OpenAI-compatible endpoint; OpenAI's own by default.")] = None,
    reference: Annotated[Path | None, typer.Option(help="Reference answers (FastChat).")] = None,
    prompts: Annotated[Path | None, typer.Option(help="Judge prompts (FastChat); our own by default.")] = None,
    against: Annotated[Path | None, typer.Option(help="A baseline's answers: judge pairs, in both orders.")] = None,
    api_key_env: Annotated[str, typer.Option(help="Environment variable that holds the key.")] = "OPENAI_API_KEY",
    in_flight: Annotated[int, typer.Option(min=1, help="Questions asked at once.")] = 16,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for one judgment.")] = 120.0,
    retries: Annotated[int, typer.Option(help="How often a call that failed in passing is tried again.")] = 6,
    temperature: Annotated[str, typer.Option(help="A number, or none to leave it to the endpoint.")] = "0",
    max_tokens: Annotated[int, typer.Option(help="Most tokens of one judgment.")] = 2048,
    max_tokens_name: Annotated[
        str, typer.Option(help="max_tokens, or max_completion_tokens for reasoning models.")
    ] = "max_tokens",
    input_usd: Annotated[float | None, typer.Option(help="Price of a million tokens asked.")] = None,
    output_usd: Annotated[float | None, typer.Option(help="Price of a million tokens answered.")] = None,
    budget_usd: Annotated[float | None, typer.Option(help="Stop before this is spent on OUT.")] = None,
    budget_tokens: Annotated[int | None, typer.Option(help="Stop before OUT has taken so many tokens.")] = None,
    as_json: AsJson = False,
) -> None:
    """Have a judge model grade stored answers; run again to go on where it stopped."""
    from alignment_dags.cli.tables import show_judged
    from eval.judge_files import judge_files, judge_settings

    _quiet()
    chosen = judge_settings(
        model=judge_model,
        base_url=base_url,
        api_key_env=api_key_env,
        in_flight=in_flight,
        timeout_seconds=timeout,
        retries=retries,
        temperature=None if temperature == "none" else temperature,
        max_tokens=max_tokens,
        max_tokens_name=max_tokens_name,
        price={"input_usd": input_usd, "output_usd": output_usd},
        budget_usd=budget_usd,
        budget_tokens=budget_tokens,
    )
    result = _tell(
        lambda: judge_files(suite, questions, answers, out, chosen, reference, prompts, against), as_json, show_judged
    )
    if result["problem"] is not None:
        print(f"error: {result['problem']}", file=sys.stderr)
        raise typer.Exit(1)


@app.command()
def compare(
    baseline: Annotated[Path, typer.Argument(help="samples.parquet of the baseline.")],
    candidate: Annotated[Path, typer.Argument(help="samples.parquet of the candidate.")],
    metric: Annotated[str | None, typer.Option(help="Only this metric.")] = None,
    margin: Annotated[float, typer.Option(help="Equivalent when the whole interval lies within ± this.")] = 0.0,
    as_json: AsJson = False,
) -> None:
    """Compare two models on the same items, by paired differences."""
    from alignment_dags.cli.tables import show_comparison
    from eval.files import compare_files

    _tell(lambda: compare_files(baseline, candidate, metric=metric, margin=margin), as_json, show_comparison)


@app.command()
def lineage(
    model: Annotated[
        str | None, typer.Argument(help="MODEL, MODEL@alias or MODEL@version (champion by default).")
    ] = None,
    row: Annotated[str | None, typer.Option(help="A row id instead: which models ever saw it.")] = None,
    source: Annotated[str, typer.Option("--from", help="store (commit records) or mlflow.")] = "store",
    as_json: AsJson = False,
) -> None:
    """Walk from a model version back to its rows (shards, reference, SFT, base, code, runs), or from a row on."""
    from alignment_dags.cli.lineage_page import show_lineage
    from alignment_dags.lineage.model import lineage_of
    from alignment_dags.lineage.rows import row_lineage, show_row
    from resources.home import ensure_home

    if (model is None) == (row is None):
        raise BadInput("give either a MODEL or --row")
    ensure_home()
    if row is not None:
        _tell(lambda: row_lineage(row), as_json, show_row)
    else:
        _tell(lambda: lineage_of(str(model), source), as_json, show_lineage)


@app.command()
def promote(
    model: Annotated[str, typer.Argument(help="Registered model.")],
    to: Annotated[str | None, typer.Option(help="Version to return to.")] = None,
    override: Annotated[
        bool, typer.Option("--override", help="Promote the recipe's current policy despite the gate.")
    ] = False,
    reason: Annotated[str, typer.Option(help="Why; recorded with the model, and needed for --override.")] = "",
    recipe: Annotated[Path | None, typer.Option(help="Its recipe (YAML), if not among those in use.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a version champion by a person's decision, which is recorded in MLflow, in lineage and in reports."""
    from alignment_dags.promote import Wish, promote, show_promotion

    wish = Wish(model, to, override, reason, recipe)
    _tell(lambda: promote(wish, _say), as_json, show_promotion)


@app.command()
def gc(
    recipes: Annotated[list[Path] | None, typer.Argument(help="Recipes (YAML); none: all in the store.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go, and how much that is.")] = False,
    keep: Annotated[int, typer.Option(min=0, help="Policies a recipe keeps beside champions and current ones.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Erase the text of withdrawn rows, weights of old checkpoints, and leftovers of interrupted builds."""
    from alignment_dags.gc.collect import collect
    from alignment_dags.gc.page import show_collected
    from resources.home import ensure_home

    ensure_home()
    _tell(lambda: collect(recipes or [], keep=keep, dry_run=dry_run), as_json, show_collected)


@app.command()
def report(
    recipe: Annotated[Path, typer.Argument(help="Recipe (YAML).")],
    out: Annotated[Path | None, typer.Option(help="File to write; report.html or history.html by default.")] = None,
    history: Annotated[bool, typer.Option("--history", help="Every registered version instead of the last report.")] = (
        False
    ),
    as_json: AsJson = False,
) -> None:
    """Write the recipe's report, or the history of its registered versions, as one HTML file."""
    from alignment_dags.cli.tables import show_fields
    from alignment_dags.history import write_report

    _tell(lambda: write_report(recipe, out, history), as_json, show_fields)


@app.command()
def nights(
    recipe: Annotated[Path, typer.Argument(help="Recipe (YAML).")],
    last: Annotated[int, typer.Option(help="How many, the latest first.", min=1)] = 10,
    as_json: AsJson = False,
) -> None:
    """Show the recipe's latest nights: what came of each, and why."""
    from alignment.recipe import load_recipe
    from alignment_dags.cli.tables import show_nights
    from alignment_dags.nights.history import latest_nights
    from resources.home import ensure_home
    from resources.store import ArtifactStore

    ensure_home()
    _tell(lambda: latest_nights(ArtifactStore().open(), load_recipe(recipe), last), as_json, show_nights)


@pools.command("apply")
def pools_apply(as_json: AsJson = False) -> None:
    """Make Dagster's pool limits those of pools.yaml."""
    import dagster as dg

    from alignment_dags.cli.tables import show_fields
    from alignment_dags.limits import apply_pools
    from resources.home import ensure_home
    from resources.pools import load_pools

    def work() -> dict[str, Any]:
        ensure_home()
        with dg.DagsterInstance.get() as instance:
            return {"limits": apply_pools(instance, load_pools())}

    _tell(work, as_json, lambda result: show_fields(result["limits"]))


@recipes.command("schema")
def recipes_schema(out: Annotated[Path | None, typer.Option(help="File to write.")] = None) -> None:
    """The JSON Schema of a recipe, for editors."""
    from alignment.recipe import Recipe

    text = json.dumps(Recipe.model_json_schema(), indent=1, sort_keys=True) + "\n"
    if out is None:
        print(text, end="")
    else:
        out.write_text(text, encoding="utf-8")


@recipes.command("check")
def recipes_check(files: Annotated[list[Path], typer.Argument(help="Recipes (YAML).")]) -> None:
    """Read recipes and say what is wrong in them."""
    from alignment.recipe import load_recipe

    for path in files:
        print(f"{path}: {load_recipe(path).name} is well-formed")
