"""The sizes of a decoder as its config.json gives them, without torch and Transformers, which are slow to import."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from alignment.recipe.forward import Lora

HeadNorms = Literal["none", "each", "whole"]


class Family(NamedTuple):
    """What decoders of one `model_type` have in common; a key that the configuration has counts more.

    `norms` are those of a layer over the hidden size. `norm` says what such a norm keeps: `after_rounding` multiplies
    its weight in the model's precision, `float32` before it rounds, `centred` takes the mean off first and keeps what
    is left twice, and `layer` is torch's own, which keeps its input. `head_norms` are norms of queries and keys, each
    head alone or all heads together.
    """

    norms: int = 2
    norm: Literal["after_rounding", "float32", "centred", "layer"] = "after_rounding"
    tied: bool = False
    head_norms: HeadNorms = "none"
    fused: bool = False
    """One matrix makes queries, keys and values, and one makes both halves of the MLP."""
    parallel: bool = False
    """The MLP reads what attention reads, and both are added at once."""
    biased: tuple[str, ...] = ()
    """Layers with a bias whatever the configuration says."""
    head_width: int | None = None
    key_heads: int | None = None
    capped: bool = False
    experts: bool = False
    """Each token goes through some of many MLPs."""
    expert_width: str = "intermediate_size"
    """The key for the width of an expert's MLP."""
    shared_expert: bool = False
    """Each token goes through one more MLP as well, whose output a gate of its own multiplies."""
    adapted_experts: bool = False
    """PEFT takes router and experts for linear layers, as which older versions of Transformers had them."""


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
    "cohere": Family(norms=1, norm="centred", tied=True, parallel=True),
    "cohere2": Family(norms=1, norm="centred", tied=True, parallel=True),
    "gpt2": Family(norm="layer", tied=True),
    "mixtral": Family(key_heads=8, experts=True, adapted_experts=True),
    "qwen2_moe": Family(
        biased=("q_proj", "k_proj", "v_proj"),
        key_heads=16,
        experts=True,
        expert_width="moe_intermediate_size",
        shared_expert=True,
    ),
    "qwen3_moe": Family(
        head_norms="each",
        key_heads=4,
        experts=True,
        expert_width="moe_intermediate_size",
        adapted_experts=True,
    ),
    "olmoe": Family(head_norms="whole", experts=True, adapted_experts=True),
}
NOT_PLANNED = {
    "gpt_oss": "its attention has sinks, with which prompts are not shared, and padded batches are not counted",
}
"""Why the activations of an architecture are not known."""
GELUS = {"gelu_new": 4, "gelu": 1, "gelu_pytorch_tanh": 1}
"""Tensors as wide as the MLP that GPT-2's activation keeps, beside the next matrix's input."""


class Linear(NamedTuple):
    """A matrix of one decoder layer, as PEFT names it; `source` is the tensor that it reads, and several may share."""

    name: str
    inputs: int
    outputs: int
    source: str
    of_mlp: bool = False

    @property
    def parameters(self) -> int:
        """Weights of the matrix."""
        return self.inputs * self.outputs


class Experts(NamedTuple):
    """The MLPs of a mixture: `number` of them, of which a token goes through `active`. Their weights are one tensor a
    layer for all first matrices and one for the second ones: no linear layers."""

    number: int
    active: int
    hidden: int
    width: int

    @property
    def router(self) -> int:
        """Weights of the matrix that picks experts."""
        return self.number * self.hidden

    @property
    def each(self) -> int:
        """Weights of one expert."""
        return 3 * self.hidden * self.width


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
    """Width of the MLP that every token goes through; 0 where all MLPs are experts."""
    tied: bool
    linears: tuple[Linear, ...]
    biases: int
    """Of one layer's matrices."""
    window: int | None = None
    head_norms: HeadNorms = "none"
    experts: Experts | None = None
    positions: int = 0
    """Positions that have embeddings; none where queries and keys are turned."""
    kept_of_mlp: int = 3
    """Tensors as wide as the MLP that it keeps, beside its last matrix's input: the gate, its activation, and what it
    multiplies."""
    drops: bool = False
    """Whether layers drop units while SFT trains, and keep which."""

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
    def linear_parameters(self) -> int:
        """Weights of a layer's linear layers: all its matrices but the experts'."""
        return sum(linear.parameters for linear in self.linears)

    @cached_property
    def token_matrices(self) -> int:
        """Weights of a layer's matrices that a token goes through: of a mixture active experts' and the router's."""
        experts = self.experts
        return self.linear_parameters + (0 if experts is None else experts.active * experts.each + experts.router)

    @cached_property
    def mlp_again(self) -> int:
        """Weights of a layer's matrices that run a second time where an MLP keeps its input alone: all but the last
        one, and of a mixture all, as the output of the last ones is multiplied by the router's weights."""
        if self.experts is None:
            return sum(one.parameters for one in self.linears if one.of_mlp and one.source != "product")
        return self.token_matrices - sum(linear.parameters for linear in self.linears if not linear.of_mlp)

    @cached_property
    def layer_parameters(self) -> int:
        """Parameters of a layer, biases and norms included."""
        of_heads = {"none": 0, "each": 2 * self.head_width, "whole": self.query_width + self.key_width}
        norms = self.family.norms * self._of_norm + of_heads[self.head_norms]
        experts = 0 if self.experts is None else self.experts.number * self.experts.each + self.experts.router
        return self.linear_parameters + experts + self.biases + norms

    @property
    def _of_norm(self) -> int:
        return self.hidden * (2 if self.family.norm == "layer" else 1)  # torch's own has a bias

    @property
    def root_parameters(self) -> int:
        """All that is in no layer: embeddings, last norm, head."""
        return self.embedding * (1 if self.tied else 2) + self.positions * self.hidden + self._of_norm

    @property
    def parameters(self) -> int:
        """Parameters of the whole model."""
        return self.layers * self.layer_parameters + self.root_parameters

    def adapted(self, lora: Lora) -> tuple[Linear, ...] | None:
        """The matrices of a layer that get an adapter; None where the targets are more than those."""
        if isinstance(lora.target_modules, str):
            return None if self.family.adapted_experts else self.linears
        names = {linear.name for linear in self.linears}
        if not set(lora.target_modules) <= names:
            return None
        return tuple(linear for linear in self.linears if linear.name in lora.target_modules)


NEEDED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
OF_GPT2 = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}
"""The older names of sizes."""


def shape_of(config: dict[str, Any]) -> Shape | None:
    """The sizes that a config.json gives; None for a model that `not_planned` says something of."""
    return None if not_planned(config) is not None else _shape(config)


def not_planned(config: dict[str, Any]) -> str | None:
    """Why a model's activations are not known; None where they are."""
    kind = str(config.get("model_type", ""))
    if kind in NOT_PLANNED:
        return NOT_PLANNED[kind]
    family = FAMILIES.get(kind)
    if family is None:
        return f"there are no formulas for {kind or 'a model without model_type'}"
    sizes = _sizes(config, family)
    if lacking := [name for name, size in sizes.items() if not (type(size) is int and size > 0)]:
        return f"config.json leaves {', '.join(lacking)} to a default"
    if kind == "gpt2":
        activation = config.get("activation_function", "gelu_new")
        return None if activation in GELUS else f"what the activation {activation} keeps is not known"
    if family.experts and (config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1):
        return "some of its layers have experts and some have none"
    if config.get("clip_qkv") is not None:
        return "what clip_qkv keeps is not known"
    if config.get("router_jitter_noise"):
        return "what router_jitter_noise keeps is not known"
    width = config.get("head_dim")
    keys = config.get("num_key_value_heads", family.key_heads) or sizes["num_attention_heads"]
    if not (type(keys) is int and type(width or 0) is int and sizes["num_attention_heads"] % keys == 0):
        return "num_attention_heads is no multiple of num_key_value_heads, or head_dim is no number"
    return None


def _sizes(config: dict[str, Any], family: Family) -> dict[str, Any]:
    """The sizes that a configuration must give, by name; what it lacks is None."""
    if config.get("model_type") == "gpt2":
        sizes = {name: config.get(OF_GPT2.get(name, name), config.get(name)) for name in NEEDED}
        sizes["n_positions"] = config.get("n_positions", config.get("max_position_embeddings"))
        inner = 4 * sizes["hidden_size"] if type(sizes["hidden_size"]) is int else None
        return sizes | {"intermediate_size": config.get("n_inner") or inner}
    sizes = {name: config.get(name) for name in NEEDED}
    if family.experts:
        sizes["num_experts"] = config.get("num_experts", config.get("num_local_experts"))
        sizes["num_experts_per_tok"] = config.get("num_experts_per_tok")
        sizes[family.expert_width] = config.get(family.expert_width)
    if family.shared_expert:
        sizes["shared_expert_intermediate_size"] = config.get("shared_expert_intermediate_size")
    return sizes


def _shape(config: dict[str, Any]) -> Shape:
    kind = config["model_type"]
    family = FAMILIES[kind]
    sizes = _sizes(config, family)
    vocabulary, hidden, intermediate, layers, heads = (sizes[name] for name in NEEDED)
    if kind == "gpt2":
        return _gpt2(config, family, sizes)
    own_width = family.head_width or hidden // heads
    width = config.get("head_dim") or own_width
    key_heads = config.get("num_key_value_heads", family.key_heads) or heads
    experts = None
    if family.experts:
        experts = Experts(sizes["num_experts"], sizes["num_experts_per_tok"], hidden, sizes[family.expert_width])
        intermediate = sizes["shared_expert_intermediate_size"] if family.shared_expert else 0
    linears = _linears(family, hidden, heads * width, key_heads * width, intermediate)
    biased = set(family.biased) if config.get("qkv_bias", True) else set()
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
        "whole" if config.get("use_qk_norm") and kind == "cohere" else family.head_norms,
        experts,
    )


def _linears(family: Family, hidden: int, queries: int, keys: int, intermediate: int) -> tuple[Linear, ...]:
    read = "attention" if family.parallel else "mlp"
    if family.fused:
        return (
            Linear("qkv_proj", hidden, queries + 2 * keys, "attention"),
            Linear("o_proj", queries, hidden, "attended"),
            Linear("gate_up_proj", hidden, 2 * intermediate, read, of_mlp=True),
            Linear("down_proj", intermediate, hidden, "product", of_mlp=True),
        )
    attention = (
        Linear("q_proj", hidden, queries, "attention"),
        Linear("k_proj", hidden, keys, "attention"),
        Linear("v_proj", hidden, keys, "attention"),
        Linear("o_proj", queries, hidden, "attended"),
    )
    if not intermediate:
        return attention
    mlp = (
        Linear("gate_proj", hidden, intermediate, read, of_mlp=True),
        Linear("up_proj", hidden, intermediate, read, of_mlp=True),
        Linear("down_proj", intermediate, hidden, "product", of_mlp=True),
    )
    gate = (Linear("shared_expert_gate", hidden, 1, read, of_mlp=True),) if family.shared_expert else ()
    return attention + mlp + gate


def _gpt2(config: dict[str, Any], family: Family, sizes: dict[str, Any]) -> Shape:
    vocabulary, hidden, inner, layers, heads = (sizes[name] for name in NEEDED)
    linears = (
        Linear("c_attn", hidden, 3 * hidden, "attention"),
        Linear("c_proj", hidden, hidden, "attended"),
        Linear("c_fc", hidden, inner, "mlp", of_mlp=True),
        Linear("c_proj", inner, hidden, "product", of_mlp=True),
    )
    return Shape(
        family,
        vocabulary,
        hidden,
        layers,
        heads,
        heads,
        hidden // heads,
        inner,
        bool(config.get("tie_word_embeddings", family.tied)),
        linears,
        sum(linear.outputs for linear in linears),
        positions=sizes["n_positions"],
        kept_of_mlp=GELUS[config.get("activation_function", "gelu_new")],
        drops=any(config.get(name, 0.1) for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop")),
    )
