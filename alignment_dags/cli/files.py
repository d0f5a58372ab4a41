"""Verbs over files: reference log-probs, scores; and comparisons of files, recipes and versions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from alignment_dags.cli.arguments import recipe_completions
from alignment_dags.cli.output import AsJson, quiet, tell


def reference(
    model: Annotated[Path, typer.Option(help="Checkpoint folder.")],
    pairs: Annotated[Path, typer.Option(help="File of preference pairs.")],
    out: Annotated[Path, typer.Option(help="Parquet file to write.")],
    max_length: Annotated[int | None, typer.Option(min=1, help="Most tokens of prompt and completion.")] = None,
    max_prompt_length: Annotated[int | None, typer.Option(min=1, help="Most tokens of a prompt.")] = None,
    truncation: Annotated[str, typer.Option(help="drop, keep_start or keep_end.")] = "drop",
    system: Annotated[str | None, typer.Option(help="System messages: as_template, first_user or drop.")] = None,
    plain_text: Annotated[str | None, typer.Option(help="Rows of plain strings: as_is or chat.")] = None,
    today: Annotated[str | None, typer.Option(help="YYYY-MM-DD, for templates that ask for the date.")] = None,
    format_tokens: Annotated[str | None, typer.Option(help="Special tokens of completions: count or mask.")] = None,
    max_dropped: Annotated[float | None, typer.Option(help="Share of rows the template may spoil, 0 to 1.")] = None,
    precision: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    batch_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of one pass; halve it on memory.")] = None,
    as_json: AsJson = False,
) -> None:
    """Score a file of pairs under a reference model, under a recipe's token settings; known sequences are cached."""
    from alignment.logprobs.files import reference_file
    from alignment_dags.cli.output import show_fields
    from resources.home import ensure_home
    from resources.store import ArtifactStore

    quiet()
    ensure_home()

    def work() -> dict[str, Any]:
        return reference_file(
            model,
            pairs,
            out,
            store=ArtifactStore().open(),
            tokens={
                "max_length": max_length,
                "max_prompt_length": max_prompt_length,
                "truncation": truncation,
                "system": system,
                "plain_text": plain_text,
                "today": today,
                "format_tokens": format_tokens,
                "max_dropped": max_dropped,
            },
            precision=precision,
            batch_tokens=batch_tokens,
        )

    tell(work, as_json, show_fields)


def score(
    suite: Annotated[
        str, typer.Argument(help="gsm8k, ifeval, mt_bench, alpaca_eval, …, xstest, or any task of lm-eval by name.")
    ],
    responses: Annotated[
        Path | None,
        typer.Option(
            help='JSONL of {"id", "turns"}, turns a list of texts, or FastChat answers; GSM8K ids count lines from 0.'
        ),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="The suite's data file.")] = None,
    judgments: Annotated[
        Path | None, typer.Option(help="Stored judgments of a judged suite; a published file needs nothing else.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for samples.parquet.")] = None,
    against: Annotated[Path | None, typer.Option(help="The baseline's answers, for judgments of pairs.")] = None,
    model: Annotated[str | None, typer.Option(help="Only this model's judgments.")] = None,
    judge: Annotated[str | None, typer.Option(help="Only this judge's judgments.")] = None,
    parsing: Annotated[str, typer.Option(help="How verdicts are read: strict, or fastchat for old files.")] = "strict",
    difficulty: Annotated[
        Path | None, typer.Option(help="AlpacaEval's df_gamed.csv: the published length-controlled win rate.")
    ] = None,
    include_path: Annotated[Path | None, typer.Option(help="Folder of your own tasks in lm-eval's YAML form.")] = None,
    as_json: AsJson = False,
) -> None:
    """Score stored responses with the suite's own scorer, or a published file of judgments as its leaderboard does."""
    from alignment_dags.cli.output import show_score
    from eval.commands import score_files
    from eval.judge.files import selection

    quiet()
    select = selection(model, judge, parsing)

    def work() -> dict[str, Any]:
        return score_files(suite, responses, data, judgments, out, against, select, difficulty, include_path)

    tell(work, as_json, show_score)


SideName = Annotated[
    str,
    typer.Argument(
        help="samples.parquet, a recipe's name or file (its newest policy), MODEL@version or MODEL@champion.",
        autocompletion=recipe_completions,
    ),
]


def compare(
    baseline: SideName,
    candidate: SideName,
    metric: Annotated[str | None, typer.Option(help="Only this metric; SUITE/METRIC between recipes.")] = None,
    margin: Annotated[
        float | None,
        typer.Option(help="Equivalent when the interval lies within ± this; a twentieth of the scale by default."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare two models on the same items, by paired differences."""
    from alignment_dags.cli.output import show_comparison
    from alignment_dags.registry.compare import compare

    tell(lambda: compare(baseline, candidate, metric, margin), as_json, show_comparison)


def diff(first: SideName, second: SideName, as_json: AsJson = False) -> None:
    """Show what differs between two recipes or versions: settings, data, checkpoints, code and metrics."""
    from alignment_dags.cli.output import show_diff
    from alignment_dags.registry.compare import diff
    from resources.home import ensure_home

    ensure_home()
    tell(lambda: diff(first, second), as_json, show_diff)
