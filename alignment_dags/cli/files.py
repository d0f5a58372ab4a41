"""Verbs over files: reference log-probs, scores, judgments; and comparisons of files, recipes and versions."""

from __future__ import annotations

import sys
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import typer

from alignment_dags.cli.arguments import recipe_completions
from alignment_dags.cli.output import AsJson, quiet, say, tell


def reference(
    model: Annotated[Path, typer.Option(help="Checkpoint folder.")],
    pairs: Annotated[Path, typer.Option(help="File of preference pairs.")],
    out: Annotated[Path, typer.Option(help="Parquet file to write.")],
    max_length: Annotated[int | None, typer.Option(min=1, help="Most tokens of prompt and completion.")] = None,
    truncation: Annotated[str, typer.Option(help="drop, keep_start or keep_end.")] = "drop",
    precision: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    as_json: AsJson = False,
) -> None:
    """Score a file of pairs under a reference model; known sequences come from the cache."""
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
            max_length=max_length,
            truncation=truncation,
            precision=precision,
        )

    tell(work, as_json, show_fields)


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
    from alignment_dags.cli.output import show_score
    from eval.commands import score_files

    quiet()
    tell(lambda: score_files(suite, responses, data, judgments, out, against), as_json, show_score)


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
    from alignment_dags.cli.output import show_judged
    from eval.commands import judge_files, judge_settings
    from eval.judge.retirement import retirement

    quiet()
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
    if warning := retirement(chosen, date.today()):
        say(f"warning: {warning}")
    result = tell(
        lambda: judge_files(suite, questions, answers, out, chosen, reference, prompts, against), as_json, show_judged
    )
    if result["problem"] is not None:
        print(f"error: {result['problem']}", file=sys.stderr)
        raise typer.Exit(1)


SideName = Annotated[
    str,
    typer.Argument(
        help="samples.parquet, a recipe's name (its newest policy), MODEL@version or MODEL@champion.",
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
