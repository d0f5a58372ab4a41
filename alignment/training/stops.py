"""Looks at the held-out pairs while a policy is trained, and the end of a training whose recipe says so in `stop`.

A look is a forward pass over as many pairs as cost less than 2 % of the steps between two looks. It changes no weight
and draws no number of the trainer's, so a run that is not stopped ends as without looks. KL, where it is asked for, is
over a few responses that the policy samples, and costs their generation.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from alignment.data.tokens import TokenSequence
from alignment.errors import BadInput
from alignment.methods import method_of
from alignment.models.sharding import sharding_of
from alignment.recipe.training import Dpo
from alignment.training.arguments import gathered, optimiser_steps, rounded
from alignment.training.held_out import logps_of, lowest, means, measure
from alignment.training.held_out_pairs import HeldOutRow
from alignment.training.pairs import PolicyPair, Score
from alignment.training.row_files import PolicyPairs
from alignment.training.sft_trainer import BestWeights
from alignment.training.signs import HIGHER_IS_BETTER, stop_reason

log = logging.getLogger(__name__)

SHARE = 0.015
"""Of the time of the steps between two looks, what a look takes at most: measured 1.6 % with the micro model."""
FORWARD = 3.0
"""A step's forward and backward pass in forward passes."""
FEWEST_PAIRS = 8
FEWEST_TO_CHOOSE = 64
"""Pairs by which candidates are told apart, whatever they cost."""
LOOKS = 10
"""Looks of a run whose recipe does not say how often."""
RESPONSES = 16
MOST_NEW_TOKENS = 128


def every_steps(settings: Dpo, steps: int) -> int:
    """Steps from one look to the next, in a run of so many steps."""
    if settings.stop is not None and settings.stop.eval_steps is not None:
        return settings.stop.eval_steps
    if settings.stop is None and settings.keep_steps is not None:
        return settings.keep_steps
    return max(1, steps // LOOKS)


def pairs_of_a_look(every: int, batch_size: int) -> int:
    """How many held-out pairs cost a look its share of the steps between two looks."""
    return int(SHARE * FORWARD * every * batch_size)


class HeldOutLooks(TrainerCallback):  # type: ignore[misc]
    """Looks at held-out pairs, records what it sees in the trainer's history, ends the training by `stop`, and keeps
    the weights of the best candidate (`keep_steps`) in `best`.

    What was seen before an interruption is in the trainer checkpoint's history. A step that ends the training leaves no
    trainer checkpoint, from which a resumed run would go on; it looks again, and ends at the same step.
    """

    def __init__(
        self,
        trainer: Any,
        held_out: PolicyPairs,
        start: Path,
        seed: int,
        runs_code: bool = False,
        best: BestWeights | None = None,
    ) -> None:
        settings: Dpo = trainer.settings
        self.trainer, self.settings, self.stop, self.seed = trainer, settings, settings.stop, seed
        self.every = every_steps(settings, optimiser_steps(len(trainer.order), settings))
        fewest = FEWEST_PAIRS if settings.keep_steps is None else FEWEST_TO_CHOOSE
        most = max(fewest, pairs_of_a_look(self.every, settings.batch_size))
        self.pairs = [row for row in lowest(held_out, most) if isinstance(row, PolicyPair)]
        if not self.pairs:
            raise BadInput("no pair is held out, which stop and keep_steps look at", field="dpo")
        self.start, self.runs_code, self.best = start, runs_code, best
        self.attention = trainer.causal_lm.config._attn_implementation
        """The model's own; while it trains it attends by shared prompts, which takes packed passes alone."""
        self.stopped_by: str | None = None
        self.resumable: int | None = None
        """The best candidate that the last trainer checkpoint knows."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Remembers the best step of the run that is resumed."""
        self.resumable = self.best_step(state.log_history)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Remembers the best step that a resumed run would know of."""
        self.resumable = self.best_step(state.log_history)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Measures the held-out pairs where a look or a candidate is due."""
        step, last = state.global_step, state.global_step >= state.max_steps
        keep = self.settings.keep_steps
        due = self.stop is not None and not last and step % self.every == 0
        candidate = keep is not None and (last or step % keep == 0)
        if not (due or candidate):
            return
        with attending_by(self.trainer.causal_lm, self.attention):
            record = {"step": step, **self.look()}
        state.log_history.append(record)
        log.info("step %d, held-out accuracy %.3f", step, record["held_out_accuracy"])
        # a candidate's look between two of the recipe's would use up `patience` before its time
        looks = [each for each in state.log_history if "held_out_accuracy" in each and each["step"] % self.every == 0]
        reason = stop_reason(looks, self.stop) if self.stop is not None and due else None
        if reason is not None:
            self.stopped_by = f"stopped at step {step} of {state.max_steps}: {reason}"
            log.warning("%s", self.stopped_by)
            control.should_training_stop, control.should_save = True, False
        if candidate or (reason is not None and keep is not None):
            record["candidate"] = 1.0
            self.keep_best(state)

    def best_step(self, log_history: Sequence[dict[str, Any]]) -> int | None:
        """The step of the best candidate so far; of equals the first."""
        name, higher = f"held_out_{self.settings.keep_by}", HIGHER_IS_BETTER[self.settings.keep_by]
        seen = {int(each["step"]): float(each[name]) for each in log_history if "candidate" in each}
        return (max if higher else min)(sorted(seen), key=lambda step: seen[step]) if seen else None

    def keep_best(self, state: Any) -> None:
        """Keeps this step's weights aside if they are the best; those that a resumed run may need stay too."""
        best = self.best_step(state.log_history)
        if best is not None and best == state.global_step and self.best is not None and state.is_world_process_zero:
            self.best.save(best, self.trainer.model, self.trainer.optimizer)
            self.best.forget_all_but({step for step in (self.resumable, best) if step is not None})

    def restore_best(self) -> dict[str, Any]:
        """Puts the best candidate's weights back into the model; says which it was, nothing without candidates."""
        state = self.trainer.state
        step = self.best_step(state.log_history)
        if step is None or self.best is None:
            return {}
        if step != state.global_step and state.is_world_process_zero:
            self.best.restore(step, self.trainer.model, self.trainer.optimizer)
        name = f"held_out_{self.settings.keep_by}"
        seen = {int(each["step"]): each[name] for each in state.log_history if "candidate" in each}
        text = (
            f"the policy is that of step {step}, whose held-out {self.settings.keep_by} of {seen[step]:.4g} is the best"
            f" of {len(seen)} candidates"
        )
        return {"kept": text, "kept_step": step}

    def look(self) -> dict[str, float]:
        """The numbers of one look; the same on every rank."""
        args = self.trainer.args
        rank, ranks = args.process_index, args.world_size
        method = method_of(self.settings)
        if sharding_of(self.trainer.causal_lm) is not None:  # all ranks make the same passes
            rank, ranks = 0, 1
        mine = self.pairs[rank::ranks]
        shares = gathered(measure(mine, method, "", self.trainer.logps) if mine else [], ranks)
        numbers = pair_numbers([row for share in shares for row in share], self.settings)
        if self.stop is not None and self.stop.kl is not None:
            numbers["held_out_kl"] = self.kl()
        return {name: rounded(value) for name, value in numbers.items()}

    def kl(self) -> float:
        """Mean of log π(y|x) − log π_start(y|x) over responses that the policy samples to held-out prompts, in nats."""
        prompts = {pair.prompt_id: pair.chosen.prompt_ids for pair in self.pairs}
        sequences = sample(self.trainer, list(prompts.values())[:RESPONSES], self.seed)
        if not sequences:
            return 0.0
        with under_start(self.trainer, self.start, self.runs_code) as score:
            before = score(sequences)
        after = self.trainer.logps(sequences)
        return statistics.fmean(one - other for one, other in zip(after, before, strict=True))


def pair_numbers(measured: Sequence[HeldOutRow], settings: Dpo) -> dict[str, float]:
    """Loss, accuracy, mean and median margin of the method's rewards on held-out pairs, in any order."""
    chosen, rejected = (reward.tolist() for reward in method_of(settings).rewards(logps_of(measured)))
    numbers = means(measured, settings)
    return {
        **{f"held_out_{name}": float(numbers[name]) for name in ("loss", "accuracy", "margin")},
        "held_out_median_margin": statistics.median(high - low for high, low in zip(chosen, rejected, strict=True)),
    }


@contextmanager
def attending_by(model: Any, attention: str) -> Iterator[None]:
    """For the while, the model attends by this implementation."""
    now = model.config._attn_implementation
    model.set_attn_implementation(attention)
    try:
        yield
    finally:
        model.set_attn_implementation(now)


def sample(trainer: Any, prompts: Sequence[tuple[int, ...]], seed: int) -> list[TokenSequence]:
    """One response of the policy to each prompt at temperature 1, cut at `MOST_NEW_TOKENS`; drawn alike each time."""
    from alignment.generation.generator import Generator, Sampling

    model = trainer.causal_lm
    settings, training = model.generation_config, model.training
    model.eval()
    try:
        generator = Generator(model, trainer.processing_class, trainer.pass_tokens)
        drawn = [Sampling(1.0, 1.0, f"{seed}/stop/{place}") for place in range(len(prompts))]
        answers = generator.continued(prompts, MOST_NEW_TOKENS, drawn)
    finally:
        model.generation_config = settings
        model.train(training)
    return [TokenSequence(tuple(prompt), ids) for prompt, ids in zip(prompts, answers, strict=True) if ids]


@contextmanager
def under_start(trainer: Any, folder: Path, runs_code: bool) -> Iterator[Score]:
    """Log-probs under the checkpoint that training started from: the model without its adapters, or loaded anew."""
    from alignment.logprobs.scorer import free_memory, logps
    from alignment.models.checkpoint import load_model

    if hasattr(trainer.model, "disable_adapter"):
        with trainer.model.disable_adapter():
            yield trainer.logps
        return
    model = [load_model(folder, trainer.settings.precision, runs_code=runs_code)]
    yield lambda sequences: logps(model[0], sequences, trainer.pass_tokens)
    model.clear()
    free_memory()
