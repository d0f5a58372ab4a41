"""Verbs for registered models: export, lineage, promotion, reports, and removal of what is no longer needed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from alignment.errors import BadInput, counted
from alignment_dags.cli.arguments import Model, RecipeFile, recipe_completions, recipe_paths
from alignment_dags.cli.output import SHOWN_ROWS, AsJson, columns, say, tell

# The output of `align lineage`: the parts that a version was made from, and the tree of its artifacts.

MANY = ("shards.", "references.")
SHORT = 12


def show_lineage(result: dict[str, Any], verbose: bool = False) -> None:
    """Prints the lineage of a model version."""
    for line in lines(result, verbose):
        print(line)
    if result["rows_file"]:
        print(f"\nrow ids: {result['rows_file']['file']} ({counted(result['rows_file']['rows'], 'row')})")


def lines(result: dict[str, Any], verbose: bool = False) -> Iterator[str]:
    """The page, line by line: the answer in short, then every part; with `verbose` the recipe too."""
    yield f"{result['model']} version {result['version']}"
    yield f"  {_in_short(result)}"
    yield ""
    yield from (f"  {line}" for line in _about(result))
    yield ""
    yield from _node("", result["tree"], "", set())
    yield ""
    yield from _shards(result["shards"])
    yield ""
    rows = [
        (run["stage"], run["key"][:SHORT], (run["dagster_run"] or "-")[:8], run["mlflow_run"] or "-")
        for run in result["runs"]
        if run["stage"] not in ("preference_shard", "reference_logprobs")
    ]
    yield columns(("stage", "key", "Dagster run", "MLflow run"), rows)
    if result["recipe"] and verbose:
        yield "\nrecipe"
        yield from (f"  {line}" for line in result["recipe"].splitlines())


def _in_short(result: dict[str, Any]) -> str:
    """Which rows, which start and which decision made the version, in one line."""
    shards, named = result["shards"], {_spoken(result["sft"]): result["sft"], "base model": result["base"]}
    start = " of ".join(f"{name} {part['digest'][:SHORT]}" for name, part in named.items() if part)
    return (
        f"trained on {counted(result['policy']['rows_trained'], 'row')} of {counted(len(shards), 'shard')}, from"
        f" {start}; the gate said {result['gate']['verdict']}."
        " --rows FILE writes the row ids, --verbose shows the recipe."
    )


def _spoken(sft: dict[str, Any] | None) -> str:
    """What a policy started from that did not start from a base model."""
    return "adopted model" if sft and sft["adopted_from"] else "SFT checkpoint"


def _about(result: dict[str, Any]) -> Iterator[str]:
    registration, gate, manifest = result["registration"], result["gate"], result["manifest"]
    decision = registration["decision"]
    if decision is None:
        yield f"registered {registration['at']}, passed by the gate"
    else:
        despite = "WITHOUT A GATE" if gate["verdict"] == "none" else "DESPITE THE GATE"
        what = f"PROMOTED {despite}" if decision["kind"] == "override" else "returned to"
        yield f"{what} by {decision['by']} on {decision['at']}{': ' if decision['reason'] else ''}{decision['reason']}"
    for problem in filter(None, (result["alias_moved"], registration["alias_moved"])):
        yield f"alias: {problem}"
    yield f"gate: {gate['verdict']}"
    if gate["verdict"] != "none":
        yield from (f"  {reason}" for reason in gate["reasons"])
    yield f"policy: {result['policy']['digest'][:SHORT]}, {counted(result['policy']['rows_trained'], 'row')} trained on"
    if adapter := result["policy"]["adapter"]:
        yield f"adapter, kept beside it: rank {adapter['rank']} on {adapter['base']}"
    yield (
        f"manifest: {manifest['digest'][:SHORT]}, {counted(manifest['rows'], 'row')}: {manifest['train']} to train on,"
        f" {manifest['held_out']} held out, {manifest['dropped']} dropped"
    )
    yield from (f"  without shard {shard}: {why}" for shard, why in (manifest["left_out"] or {}).items())
    yield f"reference: {(result['reference']['fingerprint'] or '-')[:SHORT]}"
    if result["sft"]:
        origin = _origin(result["sft"]["adopted_from"], ",")
        yield f"{_spoken(result['sft'])}: {result['sft']['digest'][:SHORT]}{origin}"
    if result["base"]:
        yield f"base model: {result['base']['digest'][:SHORT]}{_origin(result['base']['from'], ',')}"
    versions = ", ".join(f"{stage} {version}" for stage, version in result["code"]["versions"].items())
    yield f"code: {result['code']['git'] or '-'}; versions {versions}"
    if result["code_of_model"]:
        files = ", ".join(f"{name} {digest[:SHORT]}" for name, digest in result["code_of_model"].items())
        yield f"CODE OF THE MODEL RAN, as the recipe allows it: {files}"
    yield f"device: {result['device'] or '-'}"
    yield f"packages: {', '.join(f'{name} {version}' for name, version in result['packages'].items())}"
    if result["certificate"]:
        yield f"certificate: {result['certificate']['told']}"
    if result["withdrawal_evidence"]:
        yield f"trained without {result['withdrawal_evidence']['told']}"
    if result["withdrawn_since"]:
        yield f"withdrawn: {result['withdrawn_since']['told']}"
    for erasure in result["erased"]:
        yield f"erased: files of {erasure['kind']} {erasure['key'][:SHORT]} on {erasure['at']}: {erasure['why']}"


def _origin(origin: dict[str, Any] | None, lead: str) -> str:
    return f"{lead} from {', '.join(f'{name} {value}' for name, value in origin.items())}" if origin else ""


def _shards(shards: list[dict[str, Any]]) -> Iterator[str]:
    rows = [(shard["name"], shard["rows"], shard["digest"][:16]) for shard in shards[:SHOWN_ROWS]]
    yield columns(("shard", "rows", "row digest"), rows)
    if (more := len(shards) - SHOWN_ROWS) > 0:
        yield f"… and {more} more; --json names them all"


def _node(role: str, node: dict[str, Any], indent: str, seen: set[str]) -> Iterator[str]:
    """One artifact and its inputs; a manifest's shards are counted, because the table names them."""
    again = node["key"] in seen
    seen.add(node["key"])
    lead = f"{role}: " if role else ""
    lineage = node.get("lineage") or ("above" if again and node["inputs"] else "")
    mark = {"": "", "above": " (above)", "its own": " (another version, whose lineage is its own)"}[lineage]
    yield f"{indent}{lead}{node['stage']} {node['digest'][:SHORT]} (key {node['key'][:SHORT]}){mark}"
    if again:
        return
    for name, child in node["inputs"].items():
        if not name.startswith(MANY):
            yield from _node(name, child, f"{indent}  ", seen)
    for prefix in MANY:
        if count := sum(name.startswith(prefix) for name in node["inputs"]):
            yield f"{indent}  {prefix.rstrip('.')}: {count}"


def lineage(
    model: Annotated[
        str | None,
        typer.Argument(
            help="MODEL, MODEL@champion or MODEL@version (champion by default).", autocompletion=recipe_completions
        ),
    ] = None,
    row: Annotated[str | None, typer.Option(help="A row id instead: which models ever saw it.")] = None,
    rows: Annotated[
        Path | None, typer.Option(help="Write all row ids with shard and split to this Parquet (or .csv) file.")
    ] = None,
    source: Annotated[str, typer.Option("--from", help="store (commit records) or mlflow.")] = "store",
    verbose: Annotated[bool, typer.Option("--verbose", help="Print the recipe too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what made a model version: rows, reference, SFT, base, code and runs; or which models saw a row."""
    from alignment_dags.registry.lineage import lineage_of
    from alignment_dags.registry.rows import row_lineage, show_row, write_rows
    from resources.home import ensure_home

    if (model is None) == (row is None):
        raise BadInput("give either a MODEL or --row")
    if row is not None and not row.strip():
        raise BadInput("no row is named", field="--row")
    if row is not None and rows is not None:
        raise BadInput("goes with a MODEL", field="--rows")
    ensure_home()
    if row is not None:
        tell(lambda: row_lineage(row), as_json, show_row)
        return

    def work() -> dict[str, Any]:
        written = None if rows is None else write_rows(str(model), rows)
        return lineage_of(str(model), source) | {"rows_file": written}

    tell(work, as_json, lambda result: show_lineage(result, verbose))


def export(
    model: Model,
    to: Annotated[Path, typer.Option(help="Folder to make; an empty one may be there.")],
    adapter: Annotated[bool, typer.Option("--adapter", help="The kept LoRA adapter alone.")] = False,
    as_json: AsJson = False,
) -> None:
    """Copy a registered checkpoint out of the store, every file verified, into a folder that transformers loads."""
    from alignment_dags.registry.export import export, show_exported
    from resources.home import ensure_home

    ensure_home()
    tell(lambda: export(model, to, say, adapter), as_json, show_exported)


def path(model: Model, as_json: AsJson = False) -> None:
    """Print where a registered checkpoint lies on this machine; from a remote store it is fetched first."""
    from alignment_dags.registry.export import local_path
    from resources.home import ensure_home

    ensure_home()
    tell(lambda: local_path(model, say), as_json, lambda result: print(result["path"]))


def promote(
    model: Annotated[str, typer.Argument(help="Registered model.", autocompletion=recipe_completions)],
    to: Annotated[str | None, typer.Option(help="Version to return to.")] = None,
    override: Annotated[
        bool, typer.Option("--override", help="Promote the recipe's current policy despite the gate.")
    ] = False,
    reason: Annotated[str, typer.Option(help="Why; recorded with the model, and needed for --override.")] = "",
    recipe: Annotated[Path | None, typer.Option(help="Its recipe (YAML), if not among those in use.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a version champion by a person's decision, which is recorded in MLflow, in lineage and in reports."""
    from alignment_dags.registry.promote import Promotion, promote, show_promotion

    promotion = Promotion(model, to, override, reason, recipe)
    tell(lambda: promote(promotion, say), as_json, show_promotion)


def gc(
    recipes: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Recipes: files or names; none: all in the store.",
            callback=recipe_paths,
            autocompletion=recipe_completions,
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go, and how much that is.")] = False,
    keep: Annotated[int, typer.Option(min=0, help="Policies a recipe keeps beside champions and current ones.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Erase the text of withdrawn rows, weights of old checkpoints, and leftovers of interrupted builds."""
    from alignment_dags.retention.collect import collect, show_collected
    from resources.home import ensure_home

    ensure_home()
    tell(lambda: collect(recipes or [], keep=keep, dry_run=dry_run), as_json, show_collected)


def report(
    recipe: RecipeFile,
    out: Annotated[Path | None, typer.Option(help="File to write; report.html or history.html by default.")] = None,
    history: Annotated[bool, typer.Option("--history", help="Every registered version instead of the last report.")] = (
        False
    ),
    as_json: AsJson = False,
) -> None:
    """Write the recipe's report, or the history of its registered versions, as one HTML file."""
    from alignment_dags.cli.output import show_fields
    from alignment_dags.registry.reports import write_report

    tell(lambda: write_report(recipe, out, history), as_json, show_fields)
