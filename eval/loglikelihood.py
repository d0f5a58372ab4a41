"""Log-likelihoods of continuations under a loaded model: lm-eval's own scorer and tokenisation, in a token budget."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from eval.generate import batches
from eval.lm_eval_calls import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class ContinuationScorer:
    """lm-eval's HFLM around a loaded model; forward passes hold at most `batch_tokens` padded tokens."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_tokens: int) -> None:
        with quiet():
            from lm_eval.models.huggingface import HFLM

            class Budgeted(HFLM):  # type: ignore[misc]
                sizes: tuple[int, ...] = ()

                def _batch_scheduler(self, pos: int, n_reordered_requests: Any) -> int:
                    if pos == 0:  # all of them, longest first: how large the batch is that each of them is in
                        lengths = [len(context) + len(wanted) for _, context, wanted in n_reordered_requests]
                        made = batches(lengths, range(len(lengths)), 0, batch_tokens)
                        self.sizes = tuple(len(batch) for batch in made for _ in batch)
                    return self.sizes[pos]

            self.lm = Budgeted(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size="auto")

    def template(self, messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Messages as the text that the model sees."""
        return str(self.lm.apply_chat_template(messages, add_generation_prompt=add_generation_prompt))

    def problem(self, requests: Sequence[Any]) -> str | None:
        """Why an item's requests cannot be scored whole: lm-eval itself would cut a long context at its start."""
        for context, continuation in (request.args for request in requests):
            before, wanted = self._encode(context, continuation)
            if not wanted:
                return f"the continuation {continuation!r} has no token of its own"
            if before + wanted > self.lm.max_length + 1:
                return f"context and continuation of {before + wanted} tokens > {self.lm.max_length} + 1"
        return None

    def _encode(self, context: str, continuation: str) -> tuple[int, int]:
        """Tokens of both, split where lm-eval splits them."""
        if not context:  # lm-eval puts one token before it
            return 1, len(self.lm.tok_encode(continuation, add_special_tokens=False))
        before, wanted = self.lm._encode_pair(context, continuation)
        return len(before), len(wanted)

    def score(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Per request of lm-eval the continuation's log-likelihood in nats, and whether it is the greedy one."""
        if not requests:
            return []
        with quiet():
            found = self.lm.loglikelihood(list(requests), disable_tqdm=True)
        return [(float(value), bool(greedy)) for value, greedy in found]
