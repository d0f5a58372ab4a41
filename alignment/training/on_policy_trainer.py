"""TRL's GRPO trainer on answers that our generator samples, with a seed for each, so that a run can be repeated.

A step takes whole groups: `batch_size` prompts with `n` answers each. All of them are sampled and scored before the
step's first pass, from the weights that the step then changes, so the loss needs no importance weights. TRL has the
loss (its `dapo` form: advantages over the group's spread, and a mean over all tokens of the step), callbacks, logging
and resume.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from alignment.generation.generator import Generator, Sampling
from alignment.training.trainer import OurTrainer

Scoring = Callable[[Sequence[tuple[str, str, int]]], list[float | None]]
"""The score of each answer, given as (its prompt's id, its text, its number of tokens); None for one that has none."""


class OnPolicyTrainer(OurTrainer, GRPOTrainer):  # type: ignore[misc]
    """The trainer in a fixed order, with checkpoints that are whole or not there. `answers` counts what was sampled."""

    answers = 0

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None, **_: Any) -> torch.Tensor:
        """TRL's step of one micro batch; also counts answers and sums the loss."""
        loss: torch.Tensor = GRPOTrainer.training_step(self, model, inputs, num_items_in_batch)
        self.rows_forwarded += self.args.per_device_train_batch_size
        self._step_loss = self._step_loss + loss.detach()
        return loss

    def floating_point_ops(self, inputs: Any) -> int:
        """0: they are not counted."""
        return 0

    def _track_num_input_tokens(self, inputs: Any) -> None:
        """TRL counts them where they are sampled."""


def places_of(order: Sequence[int], batch_size: int, n: int, slices: int) -> list[int]:
    """The trainer's order for an order of prompts: each step's prompts `n` times each, and that once for each of the
    `slices` in which a step goes through the model. Prompts that do not fill a last step are left out."""
    places: list[int] = []
    for first in range(0, len(order) - batch_size + 1, batch_size):
        step = [int(place) for place in order[first : first + batch_size] for _ in range(n)]
        places += step * slices
    return places


def on_policy_trainer(
    model: Any,
    tokenizer: Any,
    prompts: Mapping[str, list[int]],
    scoring: Scoring,
    arguments: dict[str, Any],
    *,
    n: int,
    temperature: float,
    max_new_tokens: int,
    batch_tokens: int,
    seed: int,
) -> OnPolicyTrainer:
    """The trainer of a run: `prompts` are token ids by prompt id, and its training set has them in that order;
    `arguments` are from `trainer_arguments`, and `batch_tokens` those of one batch of answers."""
    generator = Generator(model, tokenizer, batch_tokens)

    def sampled(asked: list[str], trainer: OnPolicyTrainer) -> dict[str, Any]:
        """Answers to prompts, given by id; one that is asked again gets another number, and with it another seed."""
        numbers: Counter[str] = Counter()
        samplings = []
        for row_id in asked:
            samplings.append(
                Sampling(temperature, 1.0, f"{seed}/{trainer.state.global_step}/{row_id}/{numbers[row_id]}")
            )
            numbers[row_id] += 1
        encoded = [prompts[row_id] for row_id in asked]
        training = model.training
        model.eval()
        try:
            made = generator.continued(encoded, max_new_tokens, samplings)
        finally:
            model.train(training)
        trainer.answers += len(made)
        kept = [[token for token in ids if token not in generator.end_ids] for ids in made]
        texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in kept]
        return {"prompt_ids": encoded, "completion_ids": [list(ids) for ids in made], "logprobs": None, "text": texts}

    def score(prompts: list[str], completion_ids: list[list[int]], text: list[str], **_: Any) -> list[float | None]:
        lengths = [len(ids) for ids in completion_ids]
        return scoring(list(zip(prompts, text, lengths, strict=True)))

    config = GRPOConfig(
        **arguments,
        num_generations=n,
        temperature=temperature,
        max_completion_length=max_new_tokens,
        loss_type="dapo",
        scale_rewards="group",
        beta=0.0,
        disable_dropout=False,
        router_aux_loss_coef=0.0,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="You are using 'rollout_func'")  # the lock pins TRL
        return OnPolicyTrainer(
            model=model,
            reward_funcs=[score],
            args=config,
            train_dataset=Dataset.from_dict({"prompt": list(prompts)}),
            processing_class=tokenizer,
            rollout_func=sampled,
        )


def hold_near(trainer: OnPolicyTrainer, start: Any, weight: float) -> None:
    """Adds the divergence from a model to the loss, `weight` times in nats a token (eq. 4 of the paper)."""
    from trl.trainer.utils import add_fused_lm_head

    add_fused_lm_head(start, temperature=trainer.temperature)
    trainer.ref_model, trainer.beta = start.eval().requires_grad_(False), weight
