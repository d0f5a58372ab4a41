"""What rounds and `generate` will make: how many prompts, answers and rows, and how many calls a judge takes.

All numbers are upper bounds until something is made: duplicates, prompts that hold an item of a suite, and prompts
whose answers all score the same are only known then.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from alignment.data.hub import HubUnreachable
from alignment.errors import BadInput, counted
from alignment.generation.prompts import records_of
from alignment.models.memory import BYTES
from alignment.recipe import Recipe
from alignment.recipe.generate import Prompts, Rounds, Sampled
from alignment.store import Commit
from alignment_dags.planner import hours
from alignment_dags.planner.hours import Rate
from alignment_dags.planner.loads import PROMPT, Load
from assets.pins import prompt_sources
from eval.stages.ranked_pairs import RankedSummary

READ_AT_MOST = 1 << 24
"""Bytes of files that are read for a plan to count their prompts, about a second of work."""
QUESTION = {"judge": 700, "judge_pairs": 1100}
"""Tokens of a question to a judge: its own words, a prompt and one or two answers. Assumed."""
JUDGMENT = 200
"""Tokens of a judgment, assumed."""


@dataclass(frozen=True)
class Expected:
    """A number, None where it is not known, and how it is known."""

    value: float | None
    how: str


def prompts_of(prompts: Prompts, seed: int) -> tuple[float | None, int]:
    """Prompts of all sources, each at most `max_prompts` (None where nobody can tell before they are read), and the
    number of sources."""
    most = prompts.max_prompts
    if prompts.hub is not None:
        count = hours.rows_on_hub(prompts)
        return most if count is None else min(count, most or count), 1
    left = READ_AT_MOST
    counts: list[float | None] = []
    try:
        for source in prompt_sources(prompts, seed):
            left -= 0 if source.file is None else source.file.size
            count = None if left < 0 else sum(record.problem is None for record in records_of(source))
            counts.append(most if count is None else min(count, most or count))
    except (BadInput, ConnectionError, HubUnreachable, OSError):
        return None, max(1, len(counts))
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None, max(1, len(counts))


def pairs_a_prompt(settings: Sampled) -> int:
    """Most pairs that the answers to one prompt make."""
    return {
        "margin": settings.n * (settings.n - 1) // 2,
        "top_k": min(settings.top_k, settings.n // 2),
        "delta": settings.n,
    }.get(settings.pairs, 1)


@dataclass(frozen=True)
class Sampling:
    """What a recipe samples in one round, or before training: `settings` with the prompts that are known."""

    recipe: Recipe
    settings: Sampled
    known: float | None
    sources: int = 1

    @classmethod
    def of(cls, recipe: Recipe, settings: Sampled) -> Sampling:
        """Counts the prompts."""
        return cls(recipe, settings, *prompts_of(settings.prompts, recipe.seed))

    @property
    def prompts(self) -> Expected:
        """Prompts that are answered: not those that are held out, and of rounds with fresh prompts one's share."""
        if self.known is None:
            return Expected(None, "the number of prompts is not known before they are read; max_prompts bounds it")
        parts = 1
        if isinstance(self.settings, Rounds) and self.settings.fresh_prompts:
            parts = self.settings.count - 1
        count = self.known * (1 - self.recipe.held_out_fraction) / parts
        shared = f" of {self.known:,.0f}, over {parts} rounds" if parts > 1 else ""
        return Expected(count, f"{count:,.0f} prompts{shared}")

    @property
    def held_out(self) -> float | None:
        """Held-out prompts, on which rounds are compared."""
        return None if self.known is None else self.known * self.recipe.held_out_fraction

    def rows(self, made: Commit | None) -> Expected:
        """Rows of the shard that is made: as many as the last time, or at most so many."""
        if made is not None:
            pairs = RankedSummary.of(made).pairs
            return Expected(pairs, f"{counted(pairs, 'pair')}, as the last time")
        prompts, each = self.prompts, pairs_a_prompt(self.settings)
        if prompts.value is None:
            return prompts
        return Expected(prompts.value * each, f"{prompts.how} × {each} {'pair' if each == 1 else 'pairs'} at most")

    def answers(self, name: str) -> Expected:
        """Answers that a node of candidates samples: of a comparison those to held-out prompts."""
        if name.endswith("/answers") and isinstance(self.settings, Rounds):
            if self.held_out is None:
                return Expected(None, self.prompts.how)
            n = self.settings.compare_n
            return Expected(self.held_out * n, f"{n} answers to {self.held_out:,.0f} held-out prompts")
        prompts, n = self.prompts, self.settings.n
        return Expected(None if prompts.value is None else prompts.value * n, f"{n} answers to {prompts.how}")

    def calls(self, comparison: bool) -> dict[str, float] | None:
        """Calls to the judge by kind of score: for the pairs of all prompts, or for a comparison of two rounds."""
        kinds = [score.kind for score in self.settings.score if score.kind in QUESTION]
        count, n = self.prompts.value, self.settings.n
        if comparison and isinstance(self.settings, Rounds):
            count, n = self.held_out, 2 * self.settings.compare_n
        if count is None:
            return None
        return {kind: count * (n if kind == "judge" else n * (n - 1)) for kind in kinds}

    def judging(self, comparison: bool, made: Commit | None) -> Expected:
        """USD that the judge takes, at the tokens of the last time or else at assumed ones, within its budget."""
        judge = self.recipe.judge
        calls = self.calls(comparison)
        if judge is None or calls is None:
            return Expected(None, self.prompts.how)
        total = sum(calls.values())
        told = f"{total:,.0f} calls to the judge at most"
        tokens = {kind: (QUESTION[kind], JUDGMENT) for kind in calls}
        how = "tokens assumed"
        bill = {} if made is None else RankedSummary.of(made).judge
        if len(calls) == 1 and bill.get("judgments") and bill.get("input_tokens"):
            each = (bill["input_tokens"] / bill["judgments"], bill["output_tokens"] / bill["judgments"])
            tokens, how = dict.fromkeys(calls, each), "tokens as the last time"
        if judge.price is None:
            return Expected(None, f"{told}; judge.price would tell what they cost")
        usd = sum(
            count * (tokens[kind][0] * judge.price.input_usd + tokens[kind][1] * judge.price.output_usd) * 1e-6
            for kind, count in calls.items()
        )
        budget = None if judge.budget_usd is None else judge.budget_usd * (1 if comparison else self.sources)
        if budget is not None and budget < usd:
            return Expected(budget, f"{told}, {how}: {usd:.2f} USD, of which judge.budget_usd allows {budget:g}")
        return Expected(usd, f"{told}, {how}")


def sampling_seconds(answers: Expected, settings: Sampled, load: Load, rate: Rate) -> tuple[float | None, str]:
    """Of a number of answers, each batch up to its longest answer."""
    if answers.value is None:
        return None, answers.how
    rows = max(1, load.tokens // (PROMPT + settings.max_new_tokens))
    cache = 2 * BYTES[load.precision] * load.shape.key_width * load.shape.layers * load.tokens
    read = BYTES[load.precision] * load.shape.parameters + cache / 2
    batches = ceil(answers.value / rows)
    seconds = batches * settings.max_new_tokens * read / (hours.BANDWIDTH * rate.accelerator.bandwidth)
    peak = rate.accelerator.bandwidth / 1e12
    return seconds, f"{answers.how}, each batch to its longest, at {hours.BANDWIDTH:.0%} (assumed) of {peak:.2f} TB/s"
