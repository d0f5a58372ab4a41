"""The load-balancing term of a mixture of experts, sequence by sequence, so that no row depends on its company.

N · Σ f · P over the N experts of a layer, where f is how many of a sequence's tokens go to an expert, as a fraction of
them (it sums to the experts a token has), and P the mean probability that the router gives it: equations 4 to 6 of
Fedus et al. 2021 (Switch Transformers), which Transformers takes over all tokens of a batch, and DeepSeek-V3 (2024,
section 2.1.2) over those of a sequence, as here. The mean is over layers, then over a row's sequences.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from alignment.data.tokens import TokenSequence
from alignment.errors import BadInput

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from alignment.models.runner import Runner


class RouterLoss:
    """The term of one model, times `coefficient`."""

    def __init__(self, model: PreTrainedModel, coefficient: float) -> None:
        """Raises `BadInput` for a model whose routers Transformers does not record."""
        config: Any = model.config.get_text_config()
        recorder: Any = (getattr(model, "_can_record_outputs", None) or {}).get("router_logits")
        classes = getattr(recorder, "target_class", None)
        self.routers = [] if classes is None else [each for each in model.modules() if isinstance(each, classes)]
        self.top_k: int | None = getattr(config, "num_experts_per_tok", None)
        if not self.routers or self.top_k is None:
            what = f"{type(model).__name__} has no routers that can be balanced; leave it out"
            raise BadInput(what, field="router_aux_loss_coef")
        self.coefficient, self.place = coefficient, recorder.index

    @contextmanager
    def recorded(self) -> Iterator[list[Tensor]]:
        """The router logits [tokens, experts] of each layer of the one forward pass that is made meanwhile."""
        logits: list[Tensor] = []

        def keep(_module: Any, _inputs: Any, output: Any) -> None:
            logits.append(output[self.place])

        hooks = [router.register_forward_hook(keep) for router in self.routers]
        try:
            yield logits
        finally:  # before the backward pass, which may run layers again
            for hook in hooks:
                hook.remove()

    def of(self, logits: Sequence[Tensor], spans: Sequence[Sequence[int]]) -> Tensor:
        """[sequences], not yet times the coefficient; `spans` are the places of each sequence's tokens in a pass."""
        import torch

        wide = torch.promote_types(logits[0].dtype, torch.float32)
        within = torch.zeros(len(spans), len(logits[0]), dtype=wide)
        for row, span in enumerate(spans):
            within[row, torch.tensor(span)] = 1.0 / len(span)
        within = within.to(logits[0].device)
        losses = within.new_zeros(len(spans))
        for layer in logits:
            probabilities = layer.softmax(-1, dtype=wide)
            chosen = torch.zeros_like(probabilities).scatter_(1, probabilities.topk(self.top_k or 1).indices, 1.0)
            losses = losses + layer.shape[-1] * ((within @ chosen) * (within @ probabilities)).sum(-1)
        return losses / len(logits)


def spans_of(runner: Runner, groups: Sequence[Sequence[TokenSequence]]) -> list[list[int]]:
    """Where each sequence's tokens, but its last, stand in the pass of `groups`, its prompt's among them."""
    if runner.shared is False:
        rows = [row for group in groups for row in group]
        width = max(map(len, rows)) - 1
        return [list(range(place * width, place * width + len(row) - 1)) for place, row in enumerate(rows)]
    spans, end = list[list[int]](), 0
    for group in groups:
        prompt = range(end, end := end + len(group[0].prompt_ids))
        for row in group:
            spans.append([*prompt, *range(end, end := end + len(row.completion_ids) - 1)])
    return spans
