"""Parameters of a model and operations of its passes, from its configuration alone: nothing is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from alignment.data.tokens import Ids, TokenSequence
from alignment.errors import BadInput
from alignment.models.code import without_implementations
from alignment.models.quantised import elements
from alignment.models.shape import Shape, shape_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from alignment.recipe.forward import Lora


def parameter_counts(config: dict[str, Any], lora: Lora | None = None) -> tuple[int, int]:
    """Parameters of the model of a config.json, and those that training changes: all of them, or the adapter's.

    Raises `BadInput` for a configuration that transformers has no causal language model for.
    """
    shape = shape_of(config)
    if shape is not None and lora is None:
        return shape.parameters, shape.parameters
    if shape is not None and lora is not None and (adapted := shape.adapted(lora)) is not None:
        sides = sum(linear.inputs + linear.outputs for linear in adapted)
        return shape.parameters, lora.rank * sides * shape.layers
    return counts_of_empty_model(json.dumps(config), None if lora is None else lora.model_dump_json())


@lru_cache(maxsize=8)  # a plan asks the same of every stage, and of 8B even empty layers take a second
def counts_of_empty_model(config_text: str, lora_text: str | None) -> tuple[int, int]:
    """The same by building the model without memory for its weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from alignment.recipe.forward import Lora

    config = json.loads(config_text)
    lora = None if lora_text is None else Lora.model_validate_json(lora_text)
    try:
        with torch.device("meta"):
            made = AutoConfig.for_model(**without_implementations(config))
            model = AutoModelForCausalLM.from_config(made, trust_remote_code=False)
    except Exception as error:  # a class may raise anything on values that it does not expect
        told = (str(error) or type(error).__name__).splitlines()[0]
        raise BadInput(f"no model can be made of this configuration: {told}") from error
    whole = sum(weight.numel() for weight in model.parameters())
    if lora is None:
        return whole, whole
    head = model.get_output_embeddings()
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)}
    wanted = [layer for name, layer in layers.items() if layer is not head and _targeted(name, lora.target_modules)]
    return whole, sum(lora.rank * (layer.in_features + layer.out_features) for layer in wanted)


def _targeted(name: str, targets: list[str] | str) -> bool:
    return isinstance(targets, str) or any(name == one or name.endswith(f".{one}") for one in targets)


# Floating-point operations of a scoring pass, and what a device could do in the same time.
#
# Useful work only: every prompt once, the head where a completion token is predicted, causal attention; two
# operations a weight and token (Kaplan et al. 2020, section 2.1).


class Accelerator(NamedTuple):
    """A GPU by its maker's data sheet: dense bfloat16 operations a second, bytes of memory, and bytes a second read."""

    peak_flops: float
    memory: float
    bandwidth: float


ACCELERATORS = {
    "B200": Accelerator(2250e12, 180e9, 8.0e12),
    "H200": Accelerator(989e12, 141e9, 4.8e12),
    "H100": Accelerator(989e12, 80e9, 3.35e12),
    "A100": Accelerator(312e12, 80e9, 2.039e12),
}
"""By what a device's name holds; the modules for servers (SXM), of the A100 that with 80 GB."""


def accelerator_of(name: str | None) -> Accelerator | None:
    """The accelerator that a name stands for, such as NVIDIA-H100-80GB-HBM3; None for one that is not known."""
    return next((known for part, known in ACCELERATORS.items() if part in (name or "")), None)


EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


def scoring_flops(model: PreTrainedModel, sequences: Iterable[TokenSequence]) -> float | None:
    """Operations that scoring the sequences needs, the prompt of several completions counted once.

    None for mixtures of experts, of whose weights a token uses some.
    """
    config: Any = model.config.get_text_config()
    if any(getattr(config, name, None) for name in EXPERTS):
        return None
    vectors = {id(part.weight) for part in (model.get_input_embeddings(), model.get_output_embeddings()) if part}
    body: int = sum(elements(weight) for weight in model.parameters() if weight.ndim > 1 and id(weight) not in vectors)
    heads = getattr(config, "num_attention_heads", 0)  # 0: no attention at all
    width = heads * int(getattr(config, "head_dim", None) or config.hidden_size // max(1, heads))
    prompts: set[Ids] = set()
    tokens = completion_tokens = seen = 0
    for row in sequences:
        prompt, own = len(row.prompt_ids), len(row.completion_ids)
        if row.prompt_ids not in prompts:
            prompts.add(row.prompt_ids)
            tokens += prompt
            seen += prompt * (prompt + 1) // 2
        tokens += own
        completion_tokens += own
        seen += own * prompt + own * (own + 1) // 2
    return (
        2.0 * body * tokens
        + 2.0 * int(config.hidden_size) * int(config.vocab_size) * completion_tokens
        + 4.0 * width * int(config.num_hidden_layers) * seen
    )


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """What the device can do in a second; None where that is not known (CPUs, other GPUs, other precisions)."""
    import torch

    if device.type != "cuda" or dtype != torch.bfloat16:
        return None
    name = torch.cuda.get_device_name(device)
    known = accelerator_of(name)
    return None if known is None else known.peak_flops


# The same before there are sequences: from sizes and mean lengths.


@dataclass(frozen=True)
class Work:
    """What passes hold: `tokens` with every prompt once, `completion` tokens that are predicted, and `seen`, the sum of
    the positions that each token attends to."""

    tokens: float
    completion: float
    seen: float

    @classmethod
    def of(cls, prompt: float, completions: Iterable[float]) -> Work:
        """A prompt with its completions, by their lengths."""
        lengths = tuple(completions)
        seen = prompt * (prompt + 1) / 2 + sum(own * prompt + own * (own + 1) / 2 for own in lengths)
        return cls(prompt + sum(lengths), sum(lengths), seen)

    def __mul__(self, rows: float) -> Work:
        return Work(self.tokens * rows, self.completion * rows, self.seen * rows)


class Operations(NamedTuple):
    """`useful` ones are those that any implementation needs; `done` counts what is computed a second time as well."""

    useful: float
    done: float


def forward_operations(shape: Shape, work: Work) -> Operations:
    """Operations of scoring: 2 a weight of the layers and token, 2 of the head and predicted token, attention."""
    useful = sum(_forward(shape, work))
    return Operations(useful, useful)


def training_operations(
    shape: Shape, work: Work, *, adapter: bool, recomputed: bool | Literal["selective"]
) -> Operations:
    """Operations of training on the same: a backward pass has twice those of the forward pass, and once them for a
    frozen matrix, which gets no gradient (an adapter's own are left out). The head runs a second time in the backward
    pass, and so do all layers where their activations are `recomputed`; `selective` runs an MLP's first matrices again.
    """
    body, head, attention = _forward(shape, work)
    first = sum(linear.parameters for linear in shape.linears if linear.source == "mlp")
    again = {False: 0.0, True: body + attention, "selective": 2.0 * first * shape.layers * work.tokens}[recomputed]
    matrices = 2 if adapter else 3
    useful = matrices * (body + head) + 3 * attention
    return Operations(useful, useful + head + again)


def _forward(shape: Shape, work: Work) -> tuple[float, float, float]:
    """Of the layers' matrices, of the head, and of attention."""
    return (
        2.0 * shape.layer_matrices * shape.layers * work.tokens,
        2.0 * shape.embedding * work.completion,
        4.0 * shape.query_width * shape.layers * work.seen,
    )
