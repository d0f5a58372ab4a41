"""What a stage's model takes in the memory of one device, and the nearest changes with which it would fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Literal

from alignment.models.memory import (
    BYTES,
    Checkpointing,
    PackedPass,
    Trained,
    answering_bytes,
    quantised_parameters,
    scoring_bytes,
    training_bytes,
)
from alignment.models.runner import CPU_TOKENS
from alignment.models.shape import Shape
from alignment.models.size import parameter_counts
from alignment.recipe import Lora, Recipe
from alignment.recipe.generate import Sampled
from assets.building.node import Node
from resources.pools import Pool

GIB = 2**30
DEVICE = 1.0 * GIB
"""What CUDA, its libraries and gaps between tensors take of a GPU; assumed."""
SMOKE_TOKENS = 512
"""Prompt and answer with which a checkpoint is tried before it is registered, at most."""
PROMPT = 100
"""Tokens of a question, assumed."""
LEAST_PASS = 2048
MOST_DEVICES = 64
LORA = Lora(rank=16, alpha=32)
ON_POLICY = "on_policy_checkpoint"


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
    checkpointing: Checkpointing = False
    packed: bool = True
    """The trainer packs prompts with their completions; SFT pads rows."""
    ranks: int = 1
    beside: int = 0
    """Models that stand beside it in memory."""
    all_logits: bool = False
    sampled: int = 0
    """Tokens of a batch of answers that a training samples between its steps; 0 of one that samples none."""
    quantised: bool = False
    """Whether frozen weights of linear layers are in four bits."""

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
                buckets=not self.packed and self.ranks > 1 and self.shards == 1,
                shards=self.shards,
                quantised=quantised_parameters(self.shape) if self.quantised else 0,
            )
            flash = self.on_gpu and self.precision == "bfloat16"
            yield training_bytes(self.shape, trained, packed, self.lora, checkpointing=self.checkpointing, flash=flash)
            if self.sampled:  # gradients are let go after each step
                answering = answering_bytes(self.shape, self.sampled, self.precision)
                yield trained.parts | answering | {"gradients": 0.0}
        if self.kind in ("score", "measure"):
            yield scoring_bytes(self.shape, packed, self.precision, self.shards, quantised=self.quantised)
        if self.kind in ("answer", "measure"):
            yield answering_bytes(self.shape, self.tokens, self.precision, self.shards, all_logits=self.all_logits)

    @property
    def what(self) -> str:
        """One sentence of what was computed."""
        parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in self.parts().items() if size >= 0.05 * GIB)
        split = f", split over {self.shards} devices" if self.shards > 1 else ""
        four_bits = ", those of linear layers in 4 bits," if self.quantised else ""
        how = {False: "", True: ", activations checkpointed", "selective": ", norms and MLPs computed again"}
        recomputed = how[self.checkpointing] if self.kind == "train" else ""
        sampled = f", and {self.sampled:,} while it samples" if self.sampled else ""
        beside = f"; {self.beside} more beside it" if self.sampled and self.beside else ""
        return (
            f"{self.shape.parameters:,} parameters in {self.precision}{four_bits}{self._adapter}{split}{beside};"
            f" {self.tokens:,} tokens at once{recomputed}{sampled}" + (f"; GiB: {parts}" if parts else "")
        )

    @property
    def _adapter(self) -> str:
        if self.lora is None:
            return ""
        adapted = self.shape.adapted(self.lora) or ()
        size = self.lora.rank * self.shape.layers * sum(linear.inputs + linear.outputs for linear in adapted)
        return f" and {size:,} of the adapter"


def sampled_of(node: Node, recipe: Recipe) -> Sampled | None:
    """The settings that a node of sampled answers belongs to."""
    return recipe.rounds if node.name.startswith("round_") else recipe.generate


def precision_of(node: Node, recipe: Recipe) -> str | None:
    """The precision of the model that a stage loads; None for one that loads none."""
    if node.training is not None:
        return node.training.precision
    if node.stage.name == "candidates" and (settings := sampled_of(node, recipe)) is not None:
        return recipe.evals.precision if settings.engine.kind == "transformers" else None
    if node.stage.name == "responses" and recipe.evals.generate.kind != "transformers":
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
    """What a stage holds in memory; None for a stage without a model, and where `uncounted` says why."""
    precision = precision_of(node, recipe)
    settings = node.training
    lora = None if settings is None else settings.lora
    if precision is None or uncounted(node, shape) is not None:
        return None
    on_gpu = pool.gpus_per_slot > 0
    plain = Load("score", shape, precision, SMOKE_TOKENS, lengths.pass_of_one, on_gpu)
    if settings is not None:
        stop = getattr(settings, "stop", None)
        load = replace(
            plain,
            kind="train",
            lora=lora,
            quantised=settings.quantise is not None,
            checkpointing=settings.gradient_checkpointing,
            ranks=pool.world_size,
            beside=int(stop is not None and stop.kl is not None and lora is None),
        )
    else:
        load = plain
        if node.stage.name in SCORERS:
            load = replace(load, quantised=recipe.reference_quantise is not None)
    load = replace(load, shards=shards_of(node, recipe, pool))
    if node.name == "sft_checkpoint":
        assert recipe.sft is not None
        length = recipe.sft.max_length
        whole = PackedPass(length, length, length, 0, length**2, 0)
        return replace(load, tokens=recipe.sft.micro_batch_size * length, one=whole, packed=False)
    if node.stage.name == ON_POLICY and settings is not None and recipe.on_policy is not None:
        longest = recipe.on_policy.max_new_tokens  # each answer has its prompt before it, and they are filled up
        length = PROMPT + longest
        return replace(
            load,
            tokens=settings.micro_batch_size * length,
            one=PackedPass(length, longest, length, 0, length**2, 0),
            packed=False,
            beside=int(recipe.on_policy.kl_weight > 0),
            sampled=min(recipe.reference.batch_tokens, recipe.dpo.batch_size * recipe.on_policy.n * length),
        )
    if node.stage.name == "reward_model" and settings is not None:  # both sides of a pair in one padded batch
        length = recipe.tokens.max_length
        both = PackedPass(length, length, length, 0, length**2, 0)
        return replace(load, tokens=2 * settings.micro_batch_size * length, one=both, packed=False)
    if node.stage.name in ("responses", "policy_divergence", "candidates"):
        kind: Literal["answer", "measure"] = "measure" if node.stage.name == "policy_divergence" else "answer"
        several = node.stage.name == "responses" and bool(recipe.evals.lm_eval)
        return replace(load, kind=kind, tokens=recipe.evals.batch_tokens, all_logits=several)
    if node.stage.name == "registered_model":
        return replace(load, kind="answer")
    tokens = recipe.reference.batch_tokens
    return replace(load, tokens=tokens if on_gpu else min(tokens, CPU_TOKENS))


SCORERS = ("reference_logprobs", "policy_logprobs")
"""Stages that score rows; the first that their nodes need is the checkpoint that scores."""


def shards_of(node: Node, recipe: Recipe, pool: Pool) -> int:
    """Over how many devices a stage's model is split."""
    sections: dict[str, Any] = dict.fromkeys((*SCORERS, "new_rows"), recipe.reference)
    sections["merged_checkpoint"] = None  # one process averages, and measures the average whole
    section = node.training or sections.get(node.stage.name, recipe.evals)
    return pool.world_size if getattr(section, "sharded", False) else 1


def uncounted(node: Node, shape: Shape) -> str | None:
    """Why the activations of a stage are not known although the model's are; None where they are."""
    lora = None if node.training is None else node.training.lora
    if lora is not None and shape.adapted(lora) is None:
        if isinstance(lora.target_modules, str):
            return "all-linear puts adapters beside experts too, whose weights are then kept once more a layer"
        return "lora.target_modules names more than matrices of the layers"
    if shape.drops and node.stage.name in ("sft_checkpoint", "reward_model"):
        return "the model drops units while it is trained here, and what that keeps is not counted"
    return None


def unshardable(load: Load) -> str | None:
    """Why a load that is to be split cannot be; None where it can."""
    if load.shards == 1 or load.shape.experts is None:
        return None
    return "a mixture of experts cannot be sharded: its weights are stored in another layout; leave out sharded"


def bytes_without_activations(
    node: Node, recipe: Recipe, pool: Pool | None, config: dict[str, Any]
) -> tuple[float, str]:
    """Weights, gradients and the optimiser's state for a model whose activations are not known; raises `BadInput`."""
    settings, precision = node.training, precision_of(node, recipe)
    assert precision is not None
    shards = 1 if pool is None else shards_of(node, recipe, pool)
    split = f", split over {shards} devices" if shards > 1 else ""
    whole, trained = parameter_counts(config, None if settings is None else settings.lora)
    if settings is None:
        return BYTES[precision] * whole / shards, f"{whole:,} parameters in {precision}{split}"
    adapter = 0 if settings.lora is None else trained
    wide = node.stage.name == "policy_checkpoint"
    parts = Trained(whole, adapter, precision, wide_gradients=wide, shards=shards).parts
    return sum(parts.values()), f"{whole:,} parameters, {trained:,} of them trained{split}"


@dataclass(frozen=True)
class Remedy:
    """Changes with which a stage fits its devices, and what one device then holds."""

    changes: tuple[str, ...]
    memory_gib: float
    devices: int


Change = Literal["checkpoint", "adapter", "quantise", "shard", "smaller"]


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
    alone = stage == ON_POLICY  # which trains all weights in one process
    possible: dict[Change, bool] = {
        "checkpoint": load.kind == "train" and load.checkpointing is not True,
        "smaller": load.tokens > LEAST_PASS and stage != "sft_checkpoint" and not alone,
        "adapter": load.kind == "train" and load.lora is None and not alone and load.shape.adapted(LORA) is not None,
        "quantise": load.kind == "train" and load.lora is not None and not load.quantised and load.shards == 1,
        "shard": load.on_gpu
        and load.shards < MOST_DEVICES
        and not load.quantised
        and not alone
        and load.shape.experts is None,
    }
    return [change for change, is_left in possible.items() if is_left]


def _with(load: Load, changes: frozenset[Change], pool: Pool) -> Iterator[Load]:
    """The load with the changes: on as few devices as there are, with as large passes as there are, first."""
    levels: list[Checkpointing] = [load.checkpointing]
    if "checkpoint" in changes:
        levels = [True] if load.checkpointing or load.sampled else ["selective", True]
    if "adapter" in changes:
        load = replace(load, lora=LORA)
    if "quantise" in changes:
        load = replace(load, quantised=True)
    least = max(2, pool.world_size)
    first = least if load.shards == 1 else load.shards + least  # whole slots, more than there are
    devices = range(first, max(first, MOST_DEVICES) + 1, least) if "shard" in changes else (load.shards,)
    halves = [load.tokens >> times for times in range(1, 32) if load.tokens >> times >= LEAST_PASS]
    for shards in devices:
        for tokens in halves if "smaller" in changes else (load.tokens,):
            for level in levels:
                yield replace(load, shards=shards, ranks=max(load.ranks, shards), tokens=tokens, checkpointing=level)


def _written(change: Change, stage: str, load: Load) -> str:
    """A change as a person writes it."""
    section = {"policy_checkpoint": "optimise", ON_POLICY: "optimise", "sft_checkpoint": "sft"}.get(stage, "reference")
    if change == "checkpoint":
        return f"{section}.gradient_checkpointing: {'true' if load.checkpointing is True else load.checkpointing}"
    if change == "adapter":
        return f"{section}.lora: {{rank: {LORA.rank}}}"
    if change == "quantise":
        return f"{section}.lora.quantise: nf4"
    if change == "smaller":
        key = "evals" if load.kind in ("answer", "measure") else "reference"
        return f"{key}.batch_tokens: {load.tokens}"
    section = "evals" if load.kind in ("answer", "measure") else section
    return f"{section}.sharded: true over {load.shards} devices"
