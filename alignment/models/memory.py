"""What a model takes in a device's memory, part by part, in bytes, from its sizes and its pass alone.

Weights, gradients, masters and moments are exact. Activations are what autograd keeps of the packed pass
(`alignment.models.forward`) in Transformers' decoders: the inputs of matrices that get a gradient, of norms, of the
rotary embedding's products, of attention and of the MLP's products. docs/planning.md has the formulas.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from alignment.models.forward import LOGITS_AT_ONCE
from alignment.models.packing import rounded
from alignment.models.quantised import NF4_BYTES
from alignment.models.shape import Linear, Shape

if TYPE_CHECKING:
    from alignment.recipe.forward import Lora

Checkpointing = bool | Literal["selective"]
"""Which activations are computed again: none, all of each layer, or those of norms and MLPs."""
BYTES = {"float32": 4, "bfloat16": 2}
MOMENTS = 8
"""AdamW's two, in float32."""
LOGIT_BYTES = {"float32": 8, "bfloat16": 10}
"""Of a logit in the head's block: as it comes, in float32 (which a float32 model's is), and once more for the sum of
exponentials."""


@dataclass(frozen=True)
class Trained:
    """What is trained on one device: parameters of the model, of the adapter (0 without), and how gradients are kept.

    `wide_gradients`: the packed step moves each bfloat16 gradient into a float32 one at once; SFT converts all of them
    in the optimiser's step. `buckets`: gradients travel between ranks in buffers of their own, as SFT's do. `shards` is
    over how many devices the model is split: of a model that is trained whole its float32 weights, which are its
    masters, of one with an adapter the frozen weights.
    """

    parameters: int
    adapter: int
    precision: str
    wide_gradients: bool = True
    buckets: bool = False
    shards: int = 1
    quantised: int = 0
    """How many of the frozen parameters are in four bits."""

    @property
    def parts(self) -> dict[str, float]:
        """Weights, gradients, masters and moments while passes run."""
        width, share = BYTES[self.precision], self.parameters / self.shards
        if self.adapter:
            parts = {
                "weights": width * (share - self.quantised) + NF4_BYTES * self.quantised + 4 * self.adapter,
                "gradients": 4.0 * self.adapter,
                "moments": float(MOMENTS * self.adapter),
            }
        elif self.precision == "float32" or self.shards > 1:
            parts = {"weights": 4 * share, "gradients": 4 * share, "moments": MOMENTS * share}
        else:
            gradient = 4 if self.wide_gradients else width
            parts = {
                "weights": width * share,
                "gradients": gradient * share,
                "masters": 4 * share,
                "moments": MOMENTS * share,
            }
        if self.buckets:
            parts["buckets"] = parts["gradients"]
        return parts

    @property
    def in_step(self) -> float:
        """What the optimiser's step takes beside them: float32 copies of bfloat16 gradients."""
        copied = not (self.adapter or self.wide_gradients or self.precision == "float32" or self.shards > 1)
        return 4.0 * self.parameters if copied else 0.0


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
    """Bytes that a pass keeps for its backward pass: of one layer, of its checkpoint, of what is in no layer, and of a
    layer whose norms and MLP keep their input alone."""

    layer: float
    checkpoint: float
    root: float
    layers: int
    selective: float = 0.0

    def of_layer(self, checkpointing: Checkpointing) -> float:
        """What is kept of one layer."""
        return {False: self.layer, True: self.checkpoint, "selective": self.selective}[checkpointing]

    def kept(self, checkpointing: Checkpointing) -> float:
        """Of the whole pass when its forward pass ends."""
        return self.root + self.layers * self.of_layer(checkpointing)

    def again(self, checkpointing: Checkpointing) -> float:
        """Of what the backward pass runs again of one layer."""
        return {False: 0.0, True: self.layer, "selective": self.layer - self.selective}[checkpointing]

    def at_most(self, checkpointing: Checkpointing) -> float:
        """The same as `kept`, with the layer that the backward pass runs again."""
        return self.kept(checkpointing) + self.again(checkpointing)


def activations(
    shape: Shape, packed: PackedPass, precision: str, lora: Lora | None = None, *, flash: bool
) -> Activations:
    """Activations of one pass. `flash`: variable-length flash attention, as on a GPU in bfloat16; else segment by
    segment."""
    width, tokens, hidden = BYTES[precision], packed.tokens, shape.hidden
    attention, head_norms = _attention(shape, packed, width, flash), _head_norms(shape, width, lora)
    layer = (
        shape.family.norms * hidden * _norm(shape, width, lora)
        + head_norms
        + _matrix_inputs(shape.linears, width, lora, flash)
        + shape.kept_of_mlp * width * shape.intermediate
        + _experts(shape, width, lora)
    ) * tokens + attention
    outside = tuple(linear for linear in shape.linears if not linear.of_mlp)
    selective = (
        shape.family.norms * hidden * width
        + (0 if _is_kept(outside, width, lora) and shape.family.parallel else hidden * width)  # the MLP's input
        + head_norms
        + _matrix_inputs(outside, width, lora, flash)
    ) * tokens + attention
    turned = 0 if shape.positions else 2 * width * shape.head_width  # cosines and sines
    root = (hidden * _norm(shape, width, lora) + turned) * tokens  # the last norm
    return Activations(layer, width * hidden * tokens, root, shape.layers, selective)


def _norm(shape: Shape, width: int, lora: Lora | None) -> int:
    """Bytes an element: what the norm computes with, and where its weight is trained the normalised one."""
    if shape.family.norm == "layer":
        return width
    computed = 8 if shape.family.norm == "centred" else 4
    normalised = width if shape.family.norm == "after_rounding" else 4
    return computed + (normalised if lora is None else 0)


def _head_norms(shape: Shape, width: int, lora: Lora | None) -> int:
    normed = 0 if shape.head_norms == "none" else shape.query_width + shape.key_width
    return normed * _norm(shape, width, lora)


def _matrix_inputs(linears: Sequence[Linear], width: int, lora: Lora | None, flash: bool) -> float:
    """Bytes a token: inputs of those of a layer's matrices that get a gradient. A tensor that several read counts once,
    but every adapter keeps a float32 copy of a bfloat16 input for itself, and of a float32 one where it drops some out.
    What is dropped is a byte an element on a GPU, and a number on a CPU."""
    if lora is None:
        return float(width * sum({linear.source: linear.inputs for linear in linears}.values()))
    adapted = _adapted(linears, lora)
    between = 4 * lora.rank * len(adapted)
    if lora.dropout or width < 4:
        mask = (1 if flash else 4) if lora.dropout else 0
        return float(sum((4 + mask) * linear.inputs for linear in adapted) + between)
    return float(4 * sum({linear.source: linear.inputs for linear in adapted}.values()) + between)


def _adapted(linears: Sequence[Linear], lora: Lora) -> list[Linear]:
    every = isinstance(lora.target_modules, str)
    return [linear for linear in linears if every or linear.name in lora.target_modules]


def _is_kept(linears: Sequence[Linear], width: int, lora: Lora | None) -> bool:
    """Whether what attention reads is kept as it is: adapters keep copies in float32, or of what they do not drop."""
    if lora is None:
        return True
    return not lora.dropout and width == 4 and any(one.source == "attention" for one in _adapted(linears, lora))


def _experts(shape: Shape, width: int, lora: Lora | None) -> float:
    """Bytes a token of a mixture's MLPs, by Transformers' grouped products: of each expert that it goes through the
    first matrices' output, its activation, and the output that the router's weight multiplies; where experts are
    trained also the inputs of both matrices. The router keeps its probabilities in float32, and places of eight bytes.
    """
    experts = shape.experts
    if experts is None:
        return 0.0
    each = 3 * experts.width + shape.hidden
    routed = 4 * experts.number + experts.active * (4 * 8 + 2 * 4)
    shared = width * shape.hidden if shape.family.shared_expert else 0  # what the shared expert's gate multiplies
    if lora is None:
        each += experts.width + shape.hidden
        shared += 0 if shape.family.shared_expert else width * shape.hidden  # what the router reads
    return float(width * experts.active * each + routed + shared)


def _mlp_working(shape: Shape) -> int:
    """Elements a token that an MLP's forward pass holds at once, without its input and output."""
    experts = shape.experts
    if experts is None:
        return max(3, shape.kept_of_mlp) * shape.intermediate
    # all first outputs, or what is put back in the order of tokens, in float32
    return experts.active * max(4 * experts.width + shape.hidden, 6 * shape.hidden) + 3 * shape.intermediate


BLOCKED = 1.25
"""Places of `alignment.models.capped` a token: segments of some 250 tokens fill blocks of 128 (assumed)."""


def _attention(shape: Shape, packed: PackedPass, width: int, flash: bool) -> float:
    queries = width * shape.query_width
    if flash and shape.family.capped:
        # in blocks: queries, the output (which is read out of its blocks), its log-sum-exp, keys and values
        own = (2 * queries + 4 * shape.heads) * packed.tokens
        return BLOCKED * (own + 2 * width * shape.key_width * packed.keys)
    if flash:
        # queries, the output (also the next matrix's input) and its log-sum-exp; keys and values gathered by segment
        own = (queries + 4 * shape.heads) * packed.tokens
        return own + 2 * width * shape.key_width * packed.keys
    joined = 3 * queries * packed.tokens + 2 * queries * packed.behind  # keys and values of as many heads as queries
    if shape.family.capped:
        return joined + (shape.heads * (4 + (2 * width if width < 4 else width)) + 1) * packed.pairs
    return joined + (queries + 4 * shape.heads) * packed.tokens + width * packed.masked


def gathered(shape: Shape, precision: str, *, gradients: bool) -> float:
    """Of a sharded model what is whole for a while: two layers, of which the next is fetched, and all that is in no
    layer; with `gradients` those of a layer and of the root, in the model's precision and again in float32."""
    width = BYTES[precision]
    whole = width * (2 * shape.layer_parameters + shape.root_parameters)
    return float(whole + ((width + 4) * (shape.layer_parameters + shape.root_parameters) if gradients else 0))


def head_block(shape: Shape, reads: float, precision: str) -> float:
    """The head's logits of one block: as they come, in float32, and once more for the sum or the gradient."""
    return min(LOGITS_AT_ONCE, shape.vocabulary * rounded(int(reads))) * LOGIT_BYTES[precision]


def training_bytes(
    shape: Shape,
    trained: Trained,
    packed: PackedPass,
    lora: Lora | None = None,
    *,
    checkpointing: Checkpointing,
    flash: bool,
) -> dict[str, float]:
    """Largest memory of a training on one device, part by part: while a pass goes backward, or in the optimiser's step.

    `working` is the larger of what the head and what one layer takes for its gradients.
    """
    width = BYTES[trained.precision]
    kept = activations(shape, packed, trained.precision, lora, flash=flash)
    states = width * shape.hidden * packed.reads
    head_gradient = width * shape.embedding if lora is None else 0
    head = 2 * states + head_block(shape, packed.reads, trained.precision) + head_gradient
    layer = states + width * (_mlp_working(shape) + 2 * shape.hidden) * packed.tokens
    layer += _multiplied(shape, width) if trained.quantised else 0
    if shape.experts is not None and lora is None:  # the gradient of all experts' first matrices is one tensor
        layer += width * shape.experts.number * shape.experts.each * 2 / 3
    rerun = kept.again(checkpointing)
    passing = trained.parts | {"activations": kept.kept(checkpointing), "working": max(head, layer + rerun)}
    if trained.shards > 1:
        passing["gathered"] = gathered(shape, trained.precision, gradients=lora is None)
    stepping = trained.parts | {"step": trained.in_step}
    return max(passing, stepping, key=lambda parts: sum(parts.values()))


def quantised_parameters(shape: Shape) -> int:
    """Those of linear layers, the head left out; experts are none."""
    return shape.linear_parameters * shape.layers


def _multiplied(shape: Shape, width: int) -> int:
    """Of quantised layers one at a time is written out to be multiplied by."""
    return width * max(linear.parameters for linear in shape.linears)


def scoring_bytes(
    shape: Shape, packed: PackedPass, precision: str, shards: int = 1, *, quantised: bool = False
) -> dict[str, float]:
    """Largest memory of a pass without gradients: the weights, and the larger of an MLP's and the head's own."""
    width = BYTES[precision]
    states = width * shape.hidden * packed.tokens
    layer = 2 * states + width * _mlp_working(shape) * packed.tokens
    head = states + width * shape.hidden * packed.reads + head_block(shape, packed.reads, precision)
    parts = {"weights": width * shape.parameters / shards, "working": float(max(layer, head))}
    if quantised:
        four_bits = quantised_parameters(shape)
        parts["weights"] = width * (shape.parameters - four_bits) + NF4_BYTES * four_bits
        parts["working"] = float(max(layer + _multiplied(shape, width), head))
    if shards > 1:
        parts["gathered"] = gathered(shape, precision, gradients=False)
    return parts


def answering_bytes(
    shape: Shape, tokens: int, precision: str, shards: int = 1, *, all_logits: bool = False
) -> dict[str, float]:
    """Largest memory of answering `tokens` tokens at once, prompts and answers together: weights, keys and values of
    all layers, and one pass over prompts. `all_logits`: suites that compare continuations keep logits of every
    position."""
    width = BYTES[precision]
    cache = 2 * width * shape.key_width * tokens
    logits = 2 * width * shape.vocabulary * tokens if all_logits else 0
    parts = {
        "weights": width * shape.parameters / shards,
        "cache": float(cache * shape.layers),
        "working": float(max(width * (2 * shape.hidden + _mlp_working(shape)) * tokens + cache, logits)),
    }
    if shards > 1:
        parts["gathered"] = gathered(shape, precision, gradients=False)
    return parts
