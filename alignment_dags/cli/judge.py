"""`align judge`: stored answers judged by an endpoint, and a new judge compared with the old one."""

from __future__ import annotations

import sys
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from alignment_dags.cli.output import AsJson, quiet, say, tell

ANSWERS = "answers"


class JudgeGroup(TyperGroup):
    """`align judge SUITE …` is short for `align judge answers SUITE …`."""

    default = ANSWERS

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Puts the verb before arguments that do not begin with one."""
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = [self.default, *args]
        return super().parse_args(ctx, args)


judge = typer.Typer(
    cls=JudgeGroup,
    no_args_is_help=True,
    help="Have a judge model grade stored answers (`align judge SUITE …`), or compare a new judge with the old one.",
)

BaseUrl = Annotated[str | None, typer.Option(help="OpenAI-compatible endpoint; OpenAI's own by default.")]
InFlight = Annotated[int, typer.Option(min=1, help="Questions asked at once.")]
Timeout = Annotated[float, typer.Option(help="Seconds to wait for one judgment.")]
Retries = Annotated[int, typer.Option(help="How often a call that failed in passing is tried again.")]
Temperature = Annotated[str, typer.Option(help="A number, or none to leave it to the endpoint.")]
MaxTokens = Annotated[int, typer.Option(help="Most tokens of one judgment.")]
MaxTokensName = Annotated[str, typer.Option(help="max_tokens, or max_completion_tokens for reasoning models.")]
ApiKey = Annotated[str, typer.Option(help="Environment variable that holds the key.")]
Snapshot = Annotated[str | None, typer.Option(help="Exact model that the endpoint must name in its answers.")]
InputUsd = Annotated[float | None, typer.Option(help="Price of a million tokens asked.")]
OutputUsd = Annotated[float | None, typer.Option(help="Price of a million tokens answered.")]
BudgetUsd = Annotated[float | None, typer.Option(help="Stop before this is spent on OUT.")]
BudgetTokens = Annotated[int | None, typer.Option(help="Stop before OUT has taken so many tokens.")]


@judge.command(ANSWERS)
def judge_answers(
    suite: Annotated[str, typer.Argument(help="mt_bench, alpaca_eval, arena_hard or harmless.")],
    questions: Annotated[Path, typer.Option(help="The suite's question file.")],
    answers: Annotated[Path, typer.Option(help="The model's answers: FastChat's form or the suite's own.")],
    judge_model: Annotated[str, typer.Option(help="Model that judges.")],
    out: Annotated[Path, typer.Option(help="File of judgments; what it holds is not asked again.")],
    base_url: BaseUrl = None,
    reference: Annotated[Path | None, typer.Option(help="Reference answers (FastChat).")] = None,
    prompts: Annotated[Path | None, typer.Option(help="Judge prompts (FastChat); our own by default.")] = None,
    against: Annotated[Path | None, typer.Option(help="A baseline's answers: judge pairs, in both orders.")] = None,
    api_key_env: ApiKey = "OPENAI_API_KEY",
    snapshot: Snapshot = None,
    in_flight: InFlight = 16,
    timeout: Timeout = 120.0,
    retries: Retries = 6,
    temperature: Temperature = "0",
    max_tokens: MaxTokens = 2048,
    max_tokens_name: MaxTokensName = "max_tokens",
    input_usd: InputUsd = None,
    output_usd: OutputUsd = None,
    budget_usd: BudgetUsd = None,
    budget_tokens: BudgetTokens = None,
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
        snapshot=snapshot,
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
    _fail_on(result["problem"])


@judge.command("succeed")
def judge_succeed(
    old: Annotated[str, typer.Argument(help="Judge of the stored judgments; it need not answer any more.")],
    new: Annotated[str, typer.Argument(help="Model that may follow it.")],
    recipe: Annotated[
        Path | None, typer.Option(help="Recipe (YAML): the judgments of its SFT model, policy and champion.")
    ] = None,
    judgments: Annotated[
        list[Path] | None, typer.Option(help="Judgments in FastChat's form instead; repeat for more files.")
    ] = None,
    suite: Annotated[str | None, typer.Option(help="Only this suite; with --judgments mt_bench by default.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="Judge prompts that the old judge had (FastChat).")] = None,
    out: Annotated[Path | None, typer.Option(help="File of the new judgments; what it holds is not asked again.")] = (
        None
    ),
    questions: Annotated[int, typer.Option(min=1, help="Questions a suite, a sample by hash.")] = 80,
    repeats: Annotated[int, typer.Option(min=0, help="Ask each question so often again: the judge's noise.")] = 0,
    noise: Annotated[bool, typer.Option("--noise", help="Widen the new judge's intervals by its noise.")] = False,
    base_url: BaseUrl = None,
    api_key_env: Annotated[str | None, typer.Option(help="Environment variable that holds the key.")] = None,
    snapshot: Snapshot = None,
    in_flight: Annotated[int | None, typer.Option(min=1, help="Questions asked at once.")] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds to wait for one judgment.")] = None,
    retries: Annotated[int | None, typer.Option(help="How often a call that failed in passing is tried again.")] = None,
    temperature: Annotated[str | None, typer.Option(help="A number, or none to leave it to the endpoint.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Most tokens of one judgment.")] = None,
    max_tokens_name: Annotated[str | None, typer.Option(help="max_tokens or max_completion_tokens.")] = None,
    input_usd: InputUsd = None,
    output_usd: OutputUsd = None,
    budget_usd: BudgetUsd = None,
    budget_tokens: BudgetTokens = None,
    as_json: AsJson = False,
) -> None:
    """Ask a new judge what the old one was asked: agreement, offset, and whether past verdicts would stand."""
    from alignment_dags.registry.succession import Succession, succession
    from eval.judge.retirement import retirement
    from eval.succession import show_succession

    quiet()
    given = {
        "base_url": base_url,
        "api_key_env": api_key_env,
        "snapshot": snapshot,
        "in_flight": in_flight,
        "timeout_seconds": timeout,
        "retries": retries,
        "temperature": temperature,
        "max_tokens": max_tokens,
        "max_tokens_name": max_tokens_name,
        "budget_usd": budget_usd,
        "budget_tokens": budget_tokens,
        "price": None if input_usd is output_usd is None else {"input_usd": input_usd, "output_usd": output_usd},
    }
    wish = Succession(old, new, recipe, tuple(judgments or ()), suite, prompts, out, questions, repeats, noise, given)
    if warning := retirement(wish.judge(), date.today()):
        say(f"warning: {warning}")
    result = tell(lambda: succession(wish), as_json, show_succession)
    _fail_on(result["problem"])


def _fail_on(problem: str | None) -> None:
    if problem is not None:
        print(f"error: {problem}", file=sys.stderr)
        raise typer.Exit(1)
