"""What on-policy training will take: answers that it samples in each step, and the passes that learn from them.

All numbers are upper bounds: nobody knows before it how long the answers are, so each is taken to be `max_new_tokens`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from alignment.errors import counted
from alignment.models.memory import BYTES
from alignment.models.shape import Shape
from alignment.models.size import Work, forward_operations, training_operations
from alignment.recipe import Recipe
from alignment_dags.planner import hours
from alignment_dags.planner.generated import prompts_of
from alignment_dags.planner.hours import Rate
from alignment_dags.planner.loads import PROMPT, Load

GIB = 2**30


def cache_bytes(shape: Shape, tokens: int, precision: str) -> int:
    """Keys and values of all layers."""
    return 2 * BYTES[precision] * shape.key_width * shape.layers * tokens


@dataclass(frozen=True)
class Steps:
    """How much a training samples: `steps`, each of `prompts` prompts with `n` answers."""

    steps: int
    prompts: int
    n: int
    longest: int

    @classmethod
    def of(cls, recipe: Recipe) -> Steps | None:
        """None where nobody can count the prompts before they are read."""
        settings = recipe.on_policy
        assert settings is not None
        known, _ = prompts_of(settings.prompts, recipe.seed)
        if known is None:
            return None
        each = round(known * (1 - recipe.held_out_fraction))
        wanted = max(1, round(each * recipe.dpo.epochs))
        if recipe.dpo.most_rows is not None:
            wanted = min(wanted, recipe.dpo.most_rows)
        return cls(wanted // recipe.dpo.batch_size, recipe.dpo.batch_size, settings.n, settings.max_new_tokens)

    @property
    def answers(self) -> int:
        """Of all steps."""
        return self.steps * self.prompts * self.n

    def __str__(self) -> str:
        return (
            f"{counted(self.steps, 'step')} of {counted(self.prompts, 'prompt')} × {counted(self.n, 'answer')}, each"
            f" taken to be {self.longest:,} tokens"
        )


def on_policy_seconds(recipe: Recipe, load: Load | None, rate: Rate | None) -> tuple[float | None, str]:
    """Of the whole training, and what it is made up of; the seconds are None where prompts or device are not known."""
    settings, steps = recipe.on_policy, Steps.of(recipe)
    assert settings is not None
    if steps is None:
        return None, "the number of prompts is not known before they are read; max_prompts bounds it"
    if not steps.steps:
        return None, f"its prompts do not fill one step of {steps.prompts:,}"
    if load is None or rate is None or load.precision != "bfloat16":
        return None, f"{steps}; how fast its device is in this precision is not known before it was run"
    rows = max(1, load.sampled // (PROMPT + steps.longest))
    cache = cache_bytes(load.shape, rows * (PROMPT + steps.longest), load.precision)
    read = BYTES[load.precision] * load.shape.parameters + cache / 2
    batches = steps.steps * ceil(steps.prompts * steps.n / rows)
    sampling = batches * steps.longest * read / (hours.BANDWIDTH * rate.accelerator.bandwidth)
    work = Work.of(PROMPT, (steps.longest,)) * steps.answers
    learning = rate.seconds(training_operations(load.shape, work, adapter=False, recomputed=load.checkpointing))
    referring = rate.seconds(forward_operations(load.shape, work)) if settings.kl_weight else 0.0
    total = sampling + learning + referring
    kl = f"{referring:,.0f} s of the start checkpoint, for the divergence" if settings.kl_weight else "no reference"
    return total, (
        f"{steps}: {sampling:,.0f} s ({_share(sampling, total)}) sample them, {rows:,} at once with a cache of"
        f" {cache / GIB:.1f} GiB, at {hours.BANDWIDTH:.0%} (assumed) of {rate.accelerator.bandwidth / 1e12:.2f} TB/s;"
        f" {learning:,.0f} s of forward and backward passes at {rate}; {kl}; checking the answers is not counted"
    )


def _share(part: float, total: float) -> str:
    return f"{part / total if total else 0:.0%}".replace("%", " %")
