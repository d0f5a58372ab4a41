"""What a model takes in a device's memory, part by part, in bytes, from its sizes and its pass alone.

Weights, gradients, masters and moments are exact. Activations are what autograd keeps of the packed pass
(`alignment.models.forward`) in Transformers' decoders: the inputs of matrices that get a gradient, of norms, of the
rotary embedding's products, of attention and of the MLP's products. docs/planning.md has the formulas.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from alignment.models.packing import rounded
from alignment.models.shape import Shape

if TYPE_CHECKING:
    from alignment.recipe import Lora

BYTES = {"float32": 4, "bfloat16": 2}
MOMENTS = 8
"""AdamW's two, in float32."""
ADAPTER = 4 + 4 + MOMENTS
"""Bytes of a parameter of an adapter, which is float32 whatever the model is: weight, gradient, moments."""
LOGITS_AT_ONCE = 1 << 26
"""As `alignment.models.forward` has it."""


@dataclass(frozen=True)
class Trained:
    """What is trained on one device: parameters of the model, of the adapter (0 without), and how gradients are kept.

    `wide_gradients`: the packed step moves each bfloat16 gradient into a float32 one at once; SFT converts all of them
    in the optimiser's step. `shards` is over how many devices each tensor is split.
    """

    parameters: int
    adapter: int
    precision: str
    wide_gradients: bool = True
    shards: int = 1

    @property
    def parts(self) -> dict[str, float]:
        """Weights, gradients, masters and moments while passes run."""
        width, whole = BYTES[self.precision], self.parameters
        if self.adapter:
            parts = {
                "weights": width * whole + 4 * self.adapter,
                "gradients": 4 * self.adapter,
                "moments": MOMENTS * self.adapter,
            }
        elif self.precision == "float32" or self.shards > 1:  # a shard's weights are its masters, gathered in bfloat16
            parts = {"weights": 4 * whole, "gradients": 4 * whole, "moments": MOMENTS * whole}
        else:
            parts = {
                "weights": width * whole,
                "gradients": (4 if self.wide_gradients else width) * whole,
                "masters": 4 * whole,
                "moments": MOMENTS * whole,
            }
        return {name: size / self.shards for name, size in parts.items()}

    @property
    def in_step(self) -> float:
        """What the optimiser's step takes beside them: float32 copies of bfloat16 gradients."""
        copies = not (self.adapter or self.wide_gradients or self.precision == "float32" or self.shards > 1)
        return 4.0 * self.parameters if copies else 0.0


@dataclass(frozen=True)
class PackedPass:
    """The lengths of one pass, summed over its segments (a prompt, or a completion behind its prompt).

    `reads` are positions whose hidden state predicts a completion's token. `keys` are the keys that segments attend to,
    `behind` those of completions alone. `pairs` are pairs of a query and a key of a segment, `masked` those of
    completions alone.
    """

    tokens: float
    reads: float
    keys: float
    behind: float
    pairs: float
    masked: float

    @classmethod
    def of(cls, groups: Iterable[tuple[int, Iterable[int]]]) -> PackedPass:
        """Of prompts with their completions, by length; a completion's last token is not forwarded."""
        tokens = reads = keys = behind = pairs = masked = 0
        for prompt, completions in groups:
            tokens += prompt
            keys += prompt
            pairs += prompt * prompt
            for completion in completions:
                own = completion - 1
                tokens += own
                reads += completion
                keys += prompt + own
                behind += prompt + own
                pairs += own * (prompt + own)
                masked += own * (prompt + own)
        return cls(rounded(tokens), reads, keys, behind, pairs, masked)

    def scaled_to(self, tokens: int) -> PackedPass:
        """A pass of so many tokens with the same mix of lengths."""
        share = tokens / self.tokens
        return PackedPass(
            tokens, *(share * size for size in (self.reads, self.keys, self.behind, self.pairs, self.masked))
        )


@dataclass(frozen=True)
class Activations:
    """Bytes that a pass keeps for its backward pass: of one layer, of its checkpoint, and of what is in no layer."""

    layer: float
    checkpoint: float
    root: float
    layers: int

    def kept(self, checkpointing: bool) -> float:
        """Of the whole pass when its forward pass ends."""
        return self.root + self.layers * (self.checkpoint if checkpointing else self.layer)

    def at_most(self, checkpointing: bool) -> float:
        """The same, with the layer that the backward pass runs again."""
        return self.kept(checkpointing) + (self.layer if checkpointing else 0.0)


def activations(
    shape: Shape, packed: PackedPass, precision: str, lora: Lora | None = None, *, flash: bool
) -> Activations:
    """Activations of one pass. `flash`: variable-length flash attention, as on a GPU in bfloat16; else segment by
    segment."""
    width, tokens, hidden = BYTES[precision], packed.tokens, shape.hidden
    layer = (
        shape.family.norms * hidden * _norm(shape, width, lora)
        + _head_norms(shape, width, lora)
        + _matrix_inputs(shape, width, lora)
        + 3 * width * shape.intermediate  # gate, its activation, and what it multiplies
    ) * tokens + _attention(shape, packed, width, flash)
    root = (hidden * _norm(shape, width, lora) + 2 * width * shape.head_width) * tokens  # last norm; cosines and sines
    return Activations(layer, width * hidden * tokens, root, shape.layers)


def _norm(shape: Shape, width: int, lora: Lora | None) -> int:
    """Bytes an element: the float32 input, and where its weight is trained the normalised one."""
    normalised = width if shape.family.norm == "after_rounding" else 4
    return 4 + (normalised if lora is None else 0)


def _head_norms(shape: Shape, width: int, lora: Lora | None) -> int:
    normed = 0 if shape.family.head_norms == "none" else shape.query_width + shape.key_width
    return normed * _norm(shape, width, lora)


def _matrix_inputs(shape: Shape, width: int, lora: Lora | None) -> float:
    """Bytes a token: inputs of the layer's matrices that get a gradient. A tensor that several read counts once, but
    every adapter keeps a float32 copy of a bfloat16 input for itself, and of a float32 one where it drops some out."""
    if lora is None:
        return float(width * sum({linear.source: linear.inputs for linear in shape.linears}.values()))
    adapted = shape.adapted(lora) or ()
    between = 4 * lora.rank * len(adapted)
    if lora.dropout or width < 4:
        mask = 4 if lora.dropout else 0
        return float(sum((4 + mask) * linear.inputs for linear in adapted) + between)
    return float(4 * sum({linear.source: linear.inputs for linear in adapted}.values()) + between)


def _attention(shape: Shape, packed: PackedPass, width: int, flash: bool) -> float:
    queries = width * shape.query_width
    if flash and not shape.family.capped:
        # queries, the output (also the next matrix's input) and its log-sum-exp; keys and values gathered by segment
        own = (queries + 4 * shape.heads) * packed.tokens
        return own + 2 * width * shape.key_width * packed.keys
    joined = 3 * queries * packed.tokens + 2 * queries * packed.behind  # keys and values of as many heads as queries
    if shape.family.capped:
        return joined + (shape.heads * (4 + (2 * width if width < 4 else width)) + 1) * packed.pairs
    return joined + (queries + 4 * shape.heads) * packed.tokens + width * packed.masked
