"""How long a stage takes before it was ever run: its operations, at a stated share of what the accelerator can do."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any

from alignment.errors import counted
from alignment.models.memory import BYTES
from alignment.models.size import Accelerator, Operations, Work, accelerator_of, forward_operations, training_operations
from alignment.recipe import Dpo, Recipe
from alignment.store import Commit
from alignment_dags.planner.loads import PROMPT, Lengths, Load
from resources.pools import Pool

UTILISATION = 0.3
"""Share of the peak that training and scoring reach; assumed. Published DPO reaches 0.22 to 0.46 (docs/planning.md)."""
BANDWIDTH = 0.2
"""Share of the memory's bandwidth that answering reaches; all weights are read for a token of each answer. Assumed."""
UNMEASURED = "how long it takes is known after the first run, which measures it"
"""Of a time that nobody can compute."""
ASSUMED_LENGTHS = (200.0, (350.0, 310.0))
"""Tokens of a prompt, a chosen and a rejected completion: UltraFeedback's under a vocabulary of 128,000, roughly."""
FEW_SHOT = 150
"""Tokens of a worked example, assumed."""
PUBLISHED_ITEMS = {
    "gsm8k": 1319,
    "ifeval": 541,
    "mt_bench": 160,
    "alpaca_eval": 805,
    "arena_hard": 500,
    "xstest": 450,
    "math": 500,
}
"""Answers of a suite's published data; of MT-Bench two turns of 80 questions, of MATH the 500 of MATH-500."""


@dataclass(frozen=True)
class Rate:
    """What a pool's slot does in a second."""

    accelerator: Accelerator
    devices: int
    name: str

    @classmethod
    def of(cls, pool: Pool) -> Rate | None:
        """None for a pool whose accelerator is not known."""
        known = accelerator_of(pool.accelerator)
        if known is None or not pool.gpus_per_slot:
            return None
        return cls(known, max(1, pool.world_size), str(pool.accelerator))

    def seconds(self, operations: Operations) -> float:
        """For what is done, computed a second time or not."""
        return operations.done / (UTILISATION * self.accelerator.peak_flops * self.devices)

    def __str__(self) -> str:
        peak = self.accelerator.peak_flops / 1e12
        return f"{UTILISATION:.0%} (assumed) of {self.devices} × {peak:.0f} TFLOP/s, {self.name}"


def lengths_of(recipe: Recipe, made: list[Commit]) -> Lengths:
    """Mean lengths of a row: those of the latest reference pass that scored something, else the usual ones.

    A pass forwards every prompt once and the last token of no completion, and counts each sequence with its prompt.
    """
    for commit in made:
        summary = commit.summary
        scored, tokens, forwarded = (summary.get(name) for name in ("scored", "tokens", "forwarded_tokens"))
        if not (scored and tokens and forwarded) or recipe.method.data != "paired":
            continue
        pairs = scored / 2
        prompt = (tokens - forwarded - scored) / pairs
        completions = (tokens / pairs - 2 * prompt) / 2
        if prompt >= 1 and completions >= 1:
            return Lengths(prompt, (completions, completions), f"measured on {scored} sequences")
    prompt, completions = ASSUMED_LENGTHS
    room = recipe.tokens.max_length
    share = min(1.0, room / (prompt + completions[0]))
    sides = completions if recipe.method.data == "paired" else completions[:1]
    return Lengths(share * prompt, tuple(share * side for side in sides), "assumed")


def work_of(lengths: Lengths, rows: float) -> Work:
    """What training on rows forwards."""
    return Work.of(lengths.prompt, lengths.completions) * rows


def training_seconds(
    recipe: Recipe, settings: Dpo, load: Load, lengths: Lengths, rows: int, rate: Rate | None
) -> tuple[float | None, str]:
    """Of one preference training over `rows` rows that are trained on or held out, and how it was computed; without a
    `rate` the operations alone."""
    trained = round(rows * (1 - recipe.held_out_fraction)) * settings.epochs
    if settings.most_rows is not None:
        trained = min(trained, settings.most_rows)
    operations = training_operations(
        load.shape,
        work_of(lengths, trained),
        adapter=load.lora is not None,
        recomputed=load.checkpointing,
    )
    if settings.method.coupled:  # a partner's completion behind each prompt, without a gradient
        extra = forward_operations(load.shape, work_of(lengths, trained)).done
        operations = Operations(operations.useful + extra, operations.done + extra)
    return _timed(trained, lengths, operations, rate)


def scoring_seconds(
    recipe: Recipe, load: Load, lengths: Lengths, rows: int, rate: Rate | None
) -> tuple[float | None, str]:
    """Of the reference log-probs of `rows` rows, and how it was computed; without a `rate` the operations alone."""
    sides = lengths.completions * (2 if recipe.method.coupled else 1)
    operations = forward_operations(load.shape, Work.of(lengths.prompt, sides) * rows)
    return _timed(rows, lengths, operations, rate)


def answering_seconds(recipe: Recipe, load: Load, rate: Rate) -> tuple[float, str] | None:
    """Of all suites' answers by one model, each batch up to its longest answer; None with a suite of unknown size."""
    seconds, answers = 0.0, 0
    for name, suite in recipe.evals.selected().items():
        items = PUBLISHED_ITEMS.get(name)
        if items is None and suite.limit is None:
            return None
        items = min(items or suite.limit or 0, suite.limit or items or 0)
        if recipe.evals.best_of is not None:
            items *= recipe.evals.best_of.n
        prompt = PROMPT + FEW_SHOT * int(getattr(suite, "num_fewshot", 0))
        rows = max(1, load.tokens // (prompt + suite.max_new_tokens))
        cache = 2 * BYTES[load.precision] * load.shape.key_width * load.shape.layers * load.tokens
        read = BYTES[load.precision] * load.shape.parameters + cache / 2
        seconds += ceil(items / rows) * suite.max_new_tokens * read / (BANDWIDTH * rate.accelerator.bandwidth)
        answers += items
    peak = rate.accelerator.bandwidth / 1e12
    how = f"{answers} answers, each batch to its longest, at {BANDWIDTH:.0%} (assumed) of {peak:.2f} TB/s"
    return seconds, how


def _timed(rows: float, lengths: Lengths, operations: Operations, rate: Rate | None) -> tuple[float | None, str]:
    sides = " + ".join(f"{side:.0f}" for side in lengths.completions)
    again = operations.done / operations.useful - 1
    more = f" (and {again:.0%} of them computed again)" if again > 0.005 else ""
    how = (
        f"{counted(round(rows), 'row')} of {lengths.prompt:.0f} + {sides} tokens ({lengths.how}):"
        f" {operations.useful:.2e} operations{more}"
    )
    if rate is None:
        return None, f"{how}; {UNMEASURED}"
    return rate.seconds(operations), f"{how} at {rate}"


def rows_on_hub(source: Any) -> int | None:
    """Rows of a data set's split as its card on the hub gives them; None where it does not, or the hub is silent."""
    from huggingface_hub import HfApi

    from alignment.data.hub import DEFAULT_SPLIT, HubUnreachable, ask_hub

    try:
        info = ask_hub(str(source.hub), lambda: HfApi().dataset_info(str(source.hub), revision=source.revision))
    except (HubUnreachable, OSError, ValueError):
        return None
    described = (getattr(info, "card_data", None) or {}).get("dataset_info") or []
    for config in described if isinstance(described, list) else [described]:
        if source.config not in (None, config.get("config_name", source.config)):
            continue
        for split in config.get("splits", []):
            if split.get("name") == (source.split or DEFAULT_SPLIT):
                return int(split["num_examples"])
    return None
