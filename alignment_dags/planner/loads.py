"""What a stage's model takes in the memory of one device, and the nearest changes with which it would fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Literal

from alignment.models.memory import PackedPass, Trained, answering_bytes, scoring_bytes, training_bytes
from alignment.models.runner import CPU_TOKENS
from alignment.models.shape import Shape
from alignment.models.size import parameter_counts
from alignment.recipe import Dpo, Lora, Recipe
from assets.building.node import Node
from resources.pools import Pool

GIB = 2**30
DEVICE = 1.0 * GIB
"""What CUDA, its libraries and gaps between tensors take of a GPU; assumed."""
SMOKE_TOKENS = 512
"""Prompt and answer with which a checkpoint is tried before it is registered, at most."""
LEAST_PASS = 2048
MOST_DEVICES = 64
LORA = Lora(rank=16, alpha=32)


@dataclass(frozen=True)
class Lengths:
    """Mean tokens of a row's prompt and of its completions, and how they are known."""

    prompt: float
    completions: tuple[float, ...]
    how: str

    @property
    def pass_of_one(self) -> PackedPass:
        """One row's."""
        return PackedPass.of([(round(self.prompt), [round(length) for length in self.completions])])


@dataclass(frozen=True)
class Load:
    """One stage's model on one device. `shards` is over how many devices the model is split."""

    kind: Literal["train", "score", "answer", "measure"]
    shape: Shape
    precision: str
    tokens: int
    """Of one pass, or of one batch of answers."""
    one: PackedPass
    """The mix of lengths of a pass."""
    on_gpu: bool
    shards: int = 1
    lora: Lora | None = None
    checkpointing: bool = False
    packed: bool = True
    """The trainer packs prompts with their completions; SFT pads rows."""
    ranks: int = 1
    beside: int = 0
    """Models that stand beside it in memory."""
    all_logits: bool = False

    def parts(self) -> dict[str, float]:
        """Bytes by what takes them."""
        largest = max(self._candidates(), key=lambda parts: sum(parts.values()))
        if self.beside:
            largest["other model"] = self.beside * scoring_bytes(self.shape, self.one, self.precision)["weights"]
        if self.on_gpu:
            largest["device"] = DEVICE
        return largest

    @property
    def total(self) -> float:
        """Bytes of all parts."""
        return sum(self.parts().values())

    def _candidates(self) -> Iterator[dict[str, float]]:
        packed = self.one.scaled_to(self.tokens)
        if self.kind == "train":
            adapted = () if self.lora is None else self.shape.adapted(self.lora) or ()
            rank = 0 if self.lora is None else self.lora.rank
            trained = Trained(
                self.shape.parameters,
                rank * self.shape.layers * sum(linear.inputs + linear.outputs for linear in adapted),
                self.precision,
                wide_gradients=self.packed,
                buckets=not self.packed and self.ranks > 1,
                shards=self.shards,
            )
            flash = self.on_gpu and self.precision == "bfloat16"
            yield training_bytes(self.shape, trained, packed, self.lora, checkpointing=self.checkpointing, flash=flash)
        if self.kind in ("score", "measure"):
            yield scoring_bytes(self.shape, packed, self.precision, self.shards)
        if self.kind in ("answer", "measure"):
            yield answering_bytes(self.shape, self.tokens, self.precision, self.shards, all_logits=self.all_logits)

    @property
    def what(self) -> str:
        """One sentence of what was computed."""
        parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in self.parts().items() if size >= 0.05 * GIB)
        split = f", split over {self.shards} devices" if self.shards > 1 else ""
        recomputed = ", activations checkpointed" if self.kind == "train" and self.checkpointing else ""
        return (
            f"{self.shape.parameters:,} parameters in {self.precision}{self._adapter}{split}; {self.tokens:,} tokens at"
            f" once{recomputed}" + (f"; GiB: {parts}" if parts else "")
        )

    @property
    def _adapter(self) -> str:
        if self.lora is None:
            return ""
        adapted = self.shape.adapted(self.lora) or ()
        size = self.lora.rank * self.shape.layers * sum(linear.inputs + linear.outputs for linear in adapted)
        return f" and {size:,} of the adapter"


def precision_of(node: Node, recipe: Recipe) -> str | None:
    """The precision of the model that a stage loads; None for one that loads none."""
    if node.training is not None:
        return node.training.precision
    if node.stage.name == "responses" and recipe.evals.generate.kind == "endpoint":
        return None
    if node.name == "registered_model" and recipe.gate == "none":
        return None
    loaded = {
        "reference_logprobs": recipe.reference.precision,
        "policy_logprobs": recipe.reference.precision,
        "new_rows": recipe.reference.precision,
        "merged_checkpoint": recipe.dpo.precision,
        "responses": recipe.evals.precision,
        "policy_divergence": recipe.evals.precision,
        "registered_model": recipe.evals.precision,
    }
    return loaded.get(node.stage.name)


def load_of(node: Node, recipe: Recipe, pool: Pool, shape: Shape, lengths: Lengths) -> Load | None:
    """What a stage holds in memory; None for a stage without a model, and for an adapter on more than the layers."""
    precision = precision_of(node, recipe)
    settings = node.training
    lora = None if settings is None else settings.lora
    if precision is None or (lora is not None and shape.adapted(lora) is None):
        return None
    on_gpu = pool.gpus_per_slot > 0
    plain = Load("score", shape, precision, SMOKE_TOKENS, lengths.pass_of_one, on_gpu)
    if settings is not None:
        section: Any = settings
        stop = getattr(settings, "stop", None)
        load = replace(
            plain,
            kind="train",
            lora=lora,
            checkpointing=settings.gradient_checkpointing,
            ranks=pool.world_size,
            beside=int(stop is not None and stop.kl is not None and lora is None),
        )
    else:
        sections: dict[str, Any] = {"reference_logprobs": recipe.reference, "policy_logprobs": recipe.reference}
        section = sections.get(node.stage.name, recipe.evals)
        load = plain
    load = replace(load, shards=pool.world_size if getattr(section, "sharded", False) else 1)
    if node.name == "sft_checkpoint":
        assert recipe.sft is not None
        length = recipe.sft.max_length
        whole = PackedPass(length, length, length, 0, length**2, 0)
        return replace(load, tokens=recipe.sft.micro_batch_size * length, one=whole, packed=False)
    if node.stage.name in ("responses", "policy_divergence"):
        kind: Literal["answer", "measure"] = "answer" if node.stage.name == "responses" else "measure"
        several = kind == "answer" and bool(recipe.evals.lm_eval)
        return replace(load, kind=kind, tokens=recipe.evals.batch_tokens, all_logits=several)
    if node.stage.name == "registered_model":
        return replace(load, kind="answer")
    tokens = recipe.reference.batch_tokens
    return replace(load, tokens=tokens if on_gpu else min(tokens, CPU_TOKENS))


def bytes_without_activations(node: Node, recipe: Recipe, config: dict[str, Any]) -> tuple[float, str]:
    """Weights, gradients and the optimiser's state for a model whose activations are not known; raises `BadInput`."""
    settings, precision = node.training, precision_of(node, recipe)
    assert precision is not None
    whole, trained = parameter_counts(config, None if settings is None else settings.lora)
    if settings is None:
        return float({"float32": 4, "bfloat16": 2}[precision] * whole), f"{whole:,} parameters in {precision}"
    adapter = 0 if settings.lora is None else trained
    parts = Trained(whole, adapter, precision, wide_gradients=node.stage.name == "policy_checkpoint").parts
    return sum(parts.values()), f"{whole:,} parameters, {trained:,} of them trained"


@dataclass(frozen=True)
class Remedy:
    """Changes with which a stage fits its devices, and what one device then holds."""

    changes: tuple[str, ...]
    memory_gib: float
    devices: int


Change = Literal["checkpoint", "adapter", "shard", "smaller"]


def remedies(stage: str, load: Load, pool: Pool, room: float, needs_reference: bool) -> list[Remedy]:
    """The changes that bring a load under `room` bytes, fewest first; none that another of them makes needless."""
    found: list[tuple[frozenset[Change], Remedy]] = []
    left = _left(stage, load)
    for count in range(1, len(left) + 1):
        for changes in map(frozenset, combinations(left, count)):
            if any(fewer <= changes for fewer, _ in found):
                continue
            fitting = next((one for one in _with(load, changes, pool) if one.total <= room), None)
            if fitting is not None:
                texts = tuple(_written(change, stage, fitting) for change in left if change in changes)
                found.append((changes, Remedy(texts, fitting.total / GIB, fitting.shards)))
    remedies = [remedy for _, remedy in found]
    if stage in ("reference_logprobs", "policy_logprobs") and needs_reference:
        remedies.append(Remedy(("optimise.method without a reference (simpo, cpo, orpo)",), 0.0, 1))
    if load.kind == "answer" and stage != "registered_model":
        remedies.append(Remedy(("evals.generate.kind: endpoint, which loads no model here",), 0.0, 1))
    return remedies


def _left(stage: str, load: Load) -> list[Change]:
    """The changes that a load has not made yet, in the order a person would take them."""
    possible: dict[Change, bool] = {
        "checkpoint": load.kind == "train" and not load.checkpointing,
        "smaller": load.tokens > LEAST_PASS and stage != "sft_checkpoint",
        "adapter": load.kind == "train" and load.lora is None,
        "shard": load.on_gpu and load.shards < MOST_DEVICES,
    }
    return [change for change, is_left in possible.items() if is_left]


def _with(load: Load, changes: frozenset[Change], pool: Pool) -> Iterator[Load]:
    """The load with the changes: on as few devices as there are, with as large passes as there are, first."""
    if "checkpoint" in changes:
        load = replace(load, checkpointing=True)
    if "adapter" in changes:
        load = replace(load, lora=LORA)
    least = max(2, pool.world_size)
    first = least if load.shards == 1 else load.shards + least  # whole slots, more than there are
    devices = range(first, max(first, MOST_DEVICES) + 1, least) if "shard" in changes else (load.shards,)
    halves = [load.tokens >> times for times in range(1, 32) if load.tokens >> times >= LEAST_PASS]
    for shards in devices:
        for tokens in halves if "smaller" in changes else (load.tokens,):
            yield replace(load, shards=shards, ranks=max(load.ranks, shards), tokens=tokens)


def _written(change: Change, stage: str, load: Load) -> str:
    """A change as a person writes it."""
    section = {"policy_checkpoint": "optimise", "sft_checkpoint": "sft"}.get(stage, "reference")
    if change == "checkpoint":
        return f"{section}.gradient_checkpointing: true"
    if change == "adapter":
        return f"{section}.lora: {{rank: {LORA.rank}}}"
    if change == "smaller":
        key = "evals" if load.kind in ("answer", "measure") else "reference"
        return f"{key}.batch_tokens: {load.tokens}"
    has_key = stage == "policy_checkpoint" and "sharded" in Dpo.model_fields
    return f"{'optimise.sharded: true' if has_key else 'sharding'} over {load.shards} devices"
