"""The sizes of a decoder as its config.json gives them, without torch and Transformers, which are slow to import."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from alignment.recipe.forward import Lora


class Family(NamedTuple):
    """What decoders of one `model_type` have in common; a key that the configuration has counts more.

    `norms` are those of a layer over the hidden size. `norm` says what such a norm keeps: `after_rounding` multiplies
    its weight in the model's precision, `float32` before it rounds. `head_norms` are norms of queries and keys, each
    head alone or all heads together.
    """

    norms: int = 2
    norm: Literal["after_rounding", "float32"] = "after_rounding"
    tied: bool = False
    head_norms: Literal["none", "each", "whole"] = "none"
    fused: bool = False
    """One matrix makes queries, keys and values, and one makes both halves of the MLP."""
    biased: tuple[str, ...] = ()
    """Layers with a bias whatever the configuration says."""
    head_width: int | None = None
    key_heads: int | None = None
    capped: bool = False


FAMILIES = {
    "llama": Family(),
    "mistral": Family(key_heads=8),
    "qwen2": Family(biased=("q_proj", "k_proj", "v_proj"), key_heads=32),
    "qwen3": Family(head_norms="each", head_width=128, key_heads=32),
    "gemma": Family(norm="float32", tied=True, head_width=256, key_heads=16),
    "gemma2": Family(norms=4, norm="float32", tied=True, head_width=256, key_heads=4, capped=True),
    "gemma3_text": Family(norms=4, norm="float32", tied=True, head_norms="each", head_width=256, key_heads=4),
    "phi3": Family(fused=True),
    "granite": Family(),
    "olmo2": Family(norm="float32", head_norms="whole"),
    "olmo3": Family(norm="float32", head_norms="whole"),
    "smollm3": Family(tied=True, key_heads=4),
}


class Linear(NamedTuple):
    """A matrix of one decoder layer, as PEFT names it; `source` is the tensor that it reads, and several may share."""

    name: str
    inputs: int
    outputs: int
    source: str

    @property
    def parameters(self) -> int:
        """Weights of the matrix."""
        return self.inputs * self.outputs


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder of one of `FAMILIES`. All its layers are equal."""

    family: Family
    vocabulary: int
    hidden: int
    layers: int
    heads: int
    key_heads: int
    head_width: int
    intermediate: int
    tied: bool
    linears: tuple[Linear, ...]
    biases: int
    """Of one layer."""
    window: int | None = None

    @property
    def query_width(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_width

    @property
    def key_width(self) -> int:
        """Width of all key heads together, as of all value heads."""
        return self.key_heads * self.head_width

    @property
    def embedding(self) -> int:
        """Parameters of the embedding, and of a head of its own."""
        return self.vocabulary * self.hidden

    @cached_property
    def layer_matrices(self) -> int:
        """Weights of a layer's matrices."""
        return sum(linear.parameters for linear in self.linears)

    @cached_property
    def layer_parameters(self) -> int:
        """Parameters of a layer, biases and norms included."""
        of_heads = {"none": 0, "each": 2 * self.head_width, "whole": self.query_width + self.key_width}
        norms = self.family.norms * self.hidden + of_heads[self.family.head_norms]
        return self.layer_matrices + self.biases + norms

    @property
    def root_parameters(self) -> int:
        """All that is in no layer: embedding, last norm, head."""
        return self.embedding * (1 if self.tied else 2) + self.hidden

    @property
    def parameters(self) -> int:
        """Parameters of the whole model."""
        return self.layers * self.layer_parameters + self.root_parameters

    def adapted(self, lora: Lora) -> tuple[Linear, ...] | None:
        """The matrices of a layer that get an adapter; None where the targets are more than those."""
        if isinstance(lora.target_modules, str):
            return self.linears
        names = {linear.name for linear in self.linears}
        if not set(lora.target_modules) <= names:
            return None
        return tuple(linear for linear in self.linears if linear.name in lora.target_modules)


def shape_of(config: dict[str, Any]) -> Shape | None:
    """The sizes that a config.json gives; None for a model of no family here, or one that leaves sizes to defaults."""
    family = FAMILIES.get(config.get("model_type", ""))
    needed = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    if family is None or not all(type(config.get(name)) is int and config[name] > 0 for name in needed):
        return None
    vocabulary, hidden, intermediate, layers, heads = (int(config[name]) for name in needed)
    width = config.get("head_dim") or family.head_width or hidden // heads
    key_heads = config.get("num_key_value_heads", family.key_heads) or heads
    if not (type(width) is int and type(key_heads) is int and heads % key_heads == 0):
        return None
    queries, keys = heads * width, key_heads * width
    linears: tuple[Linear, ...]
    if family.fused:
        linears = (
            Linear("qkv_proj", hidden, queries + 2 * keys, "attention"),
            Linear("o_proj", queries, hidden, "attended"),
            Linear("gate_up_proj", hidden, 2 * intermediate, "mlp"),
            Linear("down_proj", intermediate, hidden, "product"),
        )
    else:
        linears = (
            Linear("q_proj", hidden, queries, "attention"),
            Linear("k_proj", hidden, keys, "attention"),
            Linear("v_proj", hidden, keys, "attention"),
            Linear("o_proj", queries, hidden, "attended"),
            Linear("gate_proj", hidden, intermediate, "mlp"),
            Linear("up_proj", hidden, intermediate, "mlp"),
            Linear("down_proj", intermediate, hidden, "product"),
        )
    biased = set(family.biased)
    if not family.biased and config.get("attention_bias"):
        biased |= {"q_proj", "k_proj", "v_proj", "o_proj"}
    if config.get("mlp_bias"):
        biased |= {"gate_proj", "up_proj", "down_proj"}
    return Shape(
        family,
        vocabulary,
        hidden,
        layers,
        heads,
        key_heads,
        width,
        intermediate,
        bool(config.get("tie_word_embeddings", family.tied)),
        linears,
        sum(linear.outputs for linear in linears if linear.name in biased),
        config.get("sliding_window"),
    )
