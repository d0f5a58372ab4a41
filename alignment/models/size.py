"""Parameters of a model and operations of its passes, from its configuration alone: nothing is loaded."""

from __future__ import annotations

import json
import warnings
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
    """The same by building the model without memory for its weights; adapters are PEFT's own, which puts some beside
    more than linear layers. Raises `BadInput` for what PEFT refuses, and for a configuration of no model."""
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
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(r=lora.rank, target_modules=lora.target_modules, task_type="CAUSAL_LM")
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adapted = get_peft_model(model, settings)
    except ValueError as error:
        raise BadInput(str(error).splitlines()[0], field="lora.target_modules") from error
    return whole, sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)


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

    Of a mixture of experts those count that a token goes through; None where its configuration does not say how many.
    """
    config: Any = model.config.get_text_config()
    experts = next((int(getattr(config, name)) for name in EXPERTS if getattr(config, name, None)), 0)
    active = int(getattr(config, "num_experts_per_tok", None) or 0)
    if experts and not active:
        return None
    vectors = {
        id(part.weight)
        for part in model.modules()
        if type(part).__name__.endswith("Embedding") and hasattr(part, "weight")
    }
    vectors |= {id(part.weight) for part in (model.get_input_embeddings(), model.get_output_embeddings()) if part}
    matrices = [weight for weight in model.parameters() if weight.ndim > 1 and id(weight) not in vectors]
    of_experts = [weight for weight in matrices if experts and weight.ndim == 3 and weight.shape[0] == experts]
    if experts and not of_experts:
        return None
    idle = sum(elements(weight) // experts * (experts - active) for weight in of_experts)
    body: int = sum(map(elements, matrices)) - idle
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
    pass, and so do all layers where their activations are `recomputed`; `selective` runs an MLP's first matrices again,
    and all of the experts'.
    """
    body, head, attention = _forward(shape, work)
    of_mlps = 2.0 * shape.mlp_again * shape.layers * work.tokens
    again = {False: 0.0, True: body + attention, "selective": of_mlps}[recomputed]
    matrices = 2 if adapter else 3
    useful = matrices * (body + head) + 3 * attention
    return Operations(useful, useful + head + again)


def _forward(shape: Shape, work: Work) -> tuple[float, float, float]:
    """Of the layers' matrices (of a mixture those of active experts), of the head, and of attention."""
    return (
        2.0 * shape.token_matrices * shape.layers * work.tokens,
        2.0 * shape.embedding * work.completion,
        4.0 * shape.query_width * shape.layers * work.seen,
    )
