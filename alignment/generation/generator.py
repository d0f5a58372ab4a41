"""Answers from a causal language model: prompts sorted by length, left-padded, within a token budget."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alignment.data.rows import Content
from alignment.data.templates import ChatTemplate, with_system_message
from alignment.errors import BadInput
from alignment.models.sharding import shared_out, without_gradient
from alignment.progress import ProgressLog
from alignment.recipe.forward import TokenPolicy

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

# Every row is sampled independently: an answer does not depend on the other prompts of its batch.


@dataclass(frozen=True)
class Sampling:
    """How one answer is drawn; temperature 0 is greedy. `seed` is any text: equal seeds draw equal numbers."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: str = ""


GREEDY = Sampling()


class RowSampler:
    """A logits processor that leaves each sampled row one token, drawn by inverting its distribution.

    A token takes one uniform number of the row's own generator, so that rounding in a batch can change a draw only if
    the number falls on the edge of two tokens.
    """

    def __init__(self, samplings: Sequence[Sampling]) -> None:
        self.rows = [row for row, sampling in enumerate(samplings) if sampling.temperature > 0]
        self.samplings = [samplings[row] for row in self.rows]
        self.generators = [random.Random(sampling.seed) for sampling in self.samplings]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """`scores`: logits [rows, vocabulary]."""
        import torch

        if not self.rows:
            return scores
        temperatures = scores.new_tensor([[sampling.temperature] for sampling in self.samplings], dtype=torch.float64)
        limits = scores.new_tensor([[sampling.top_p] for sampling in self.samplings], dtype=torch.float64)
        numbers = scores.new_tensor([[generator.random()] for generator in self.generators], dtype=torch.float64)
        tokens = draw(scores[self.rows].double() / temperatures, limits, numbers)
        scores = scores.clone()
        scores[self.rows] = float("-inf")
        scores[self.rows, tokens] = 0.0
        return scores


def draw(logits: torch.Tensor, top_p: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Token ids [rows] from logits [rows, vocabulary] at uniform numbers in [0, 1) [rows, 1].

    Only the most likely tokens that together reach `top_p` [rows, 1] are drawn (Holtzman et al. 2020).
    """
    import torch

    chances, ids = torch.softmax(logits, dim=-1).sort(dim=-1, descending=True, stable=True)
    reached = chances.cumsum(dim=-1)
    chances = chances.masked_fill(reached - chances >= top_p, 0.0)  # the most likely token always stays
    reached = chances.cumsum(dim=-1)
    places = torch.searchsorted(reached, numbers * reached[:, -1:], right=True)
    return ids.gather(1, places.clamp(max=ids.shape[1] - 1)).squeeze(1)


# Prompts as token ids, the same as in training.


def as_trained(prompt: Content, tokens: TokenPolicy) -> Content:
    """A prompt in the form that training uses."""
    if isinstance(prompt, str) and tokens.plain_text == "chat":
        return ({"role": "user", "content": prompt},)
    return prompt


LEAST_NEW_TOKENS = 16
"""A prompt must leave room for this many new tokens in the model's context (or for `max_new_tokens`, if fewer)."""

Message = dict[str, str]
Prompt = str | Sequence[Message]
"""Plain text, or chat messages."""


class PromptEncoder:
    """A tokenizer, the length of the model's context (None if unknown), and how training wrote its rows."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, context: int | None, tokens: TokenPolicy | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.context = context
        self.tokens = tokens or TokenPolicy()
        self.chat_template = ChatTemplate(tokenizer, self.tokens.today).text
        """The template with its date set, as in training."""
        alone = self._ids("a", special=True)
        self._adds_start = alone[0] == tokenizer.bos_token_id
        self._adds_end = len(alone) > 1 and alone[-1] == tokenizer.eos_token_id

    @property
    def is_chat(self) -> bool:
        """Whether prompts go through the tokenizer's chat template."""
        return bool(self.tokenizer.chat_template)

    def encode(self, prompt: Prompt) -> list[int]:
        """Ids of a prompt as in training. Messages go through the chat template with its generation prompt; text stays
        as it is. There is one BOS if the tokenizer or the template adds it, and no EOS. If the last message is the
        assistant's, the answer continues it.

        Raises `BadInput` for messages that the chat template refuses.
        """
        if isinstance(prompt, str):
            ids = self._ids(prompt, special=True)
            return ids[:-1] if self._adds_end else ids
        ids, start = self._ids(self._text(prompt), special=False), self.tokenizer.bos_token_id
        opened = bool(ids) and ids[0] == start
        while ids and ids[0] == start:
            ids.pop(0)
        return [start, *ids] if opened or self._adds_start else ids

    def room(self, ids: Sequence[int], max_new_tokens: int) -> int:
        """New tokens that an answer may take: `max_new_tokens`, or fewer if the context has no more room."""
        return max_new_tokens if self.context is None else min(max_new_tokens, self.context - len(ids))

    def problem(self, ids: Sequence[int], max_new_tokens: int) -> str | None:
        """Why a prompt cannot be answered; None if it can."""
        if not ids:
            return "the prompt has no token"
        least = min(LEAST_NEW_TOKENS, max_new_tokens)
        if self.room(ids, max_new_tokens) < least:
            return f"prompt of {len(ids)} tokens + {least} new > {self.context}"
        return None

    def _text(self, messages: Sequence[Message]) -> str:
        from jinja2 import TemplateError

        opening = bool(messages) and messages[-1]["role"] == "assistant"
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    [dict(message) for message in with_system_message(messages, self.tokens.system)],
                    chat_template=self.chat_template,
                    tokenize=False,
                    add_generation_prompt=not opening,
                    continue_final_message=opening,
                )
            )
        except TemplateError as error:
            roles = ", ".join(dict.fromkeys(message["role"] for message in messages))
            raise BadInput(f"the chat template refuses messages of {roles}: {error}", field="chat_template") from error

    def _ids(self, text: str, *, special: bool) -> list[int]:
        return [int(i) for i in self.tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]]


@dataclass(frozen=True)
class Answer:
    """Text up to the first stop string, and the number of new tokens; `failed` says why there is no answer.

    `ids` are the new tokens with the end token; empty for an endpoint's answer. `ended` is whether the answer ended by
    itself, where somebody asked.
    """

    text: str
    tokens: int = 0
    failed: str | None = None
    ids: tuple[int, ...] = ()
    ended: bool | None = None


NewIds = tuple[int, ...]
"""The new token ids of one answer, with the end token where it ended."""


@dataclass(frozen=True)
class Batch:
    """Prompts [rows] as token ids that go through the model together; `limits` are the most new tokens of each."""

    prompts: list[Sequence[int]]
    limits: list[int]
    until: tuple[str, ...]
    samplings: list[Sampling]

    @property
    def positions(self) -> int:
        """Tokens of prompts and answers, if every answer takes all its tokens."""
        return sum(map(len, self.prompts)) + sum(self.limits)


Each = Callable[[Sequence[Batch], Callable[[Batch], list[NewIds]]], list[list[NewIds]]]
"""Makes each of the batches by the function, here or elsewhere, and returns what came, in order."""


class Generator:
    """One loaded model that answers any number of prompts, greedily by default, the same way every time.

    `each` is who makes the batches of answers; None is this process, or the ranks of a sharded model.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        batch_tokens: int,
        tokens: TokenPolicy | None = None,
        each: Each | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.batch_tokens = batch_tokens
        self.each: Each = each or (lambda batches, work: shared_out(model, batches, work))
        self.encoder = PromptEncoder(tokenizer, context_length(model.config), tokens)
        self.end_ids = _end_ids(model, tokenizer)

    @property
    def is_chat(self) -> bool:
        """Whether prompts go through the tokenizer's chat template."""
        return self.encoder.is_chat

    def answer(
        self,
        prompts: Sequence[Prompt],
        max_new_tokens: int,
        until: Sequence[str] = (),
        samplings: Sequence[Sampling] | None = None,
        parts: Sequence[int] | None = None,
    ) -> list[Answer]:
        """One answer per prompt, in order. An answer ends at the latest where the context ends.

        `parts` are numbers of prompts, one part behind the other: prompts of two parts are in no batch together.
        """
        samplings = [GREEDY] * len(prompts) if samplings is None else samplings
        encoded = [self.encoder.encode(prompt) for prompt in prompts]
        return self.answer_ids(encoded, max_new_tokens, until, samplings, parts)

    def answer_ids(
        self,
        encoded: Sequence[list[int]],
        max_new_tokens: int,
        until: Sequence[str],
        samplings: Sequence[Sampling],
        parts: Sequence[int] | None = None,
    ) -> list[Answer]:
        """One answer per prompt that is given as token ids, in order."""
        made = self._made(encoded, max_new_tokens, until, samplings, parts)
        problems = {
            place: problem
            for place, ids in enumerate(encoded)
            if (problem := self.encoder.problem(ids, max_new_tokens)) is not None
        }
        return [
            Answer("", failed=problems[place]) if place in problems else self._decode(made[place], until)
            for place in range(len(encoded))
        ]

    def continued(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, samplings: Sequence[Sampling]
    ) -> list[NewIds]:
        """New token ids for each prompt's ids, the end token included; none for a prompt that leaves no room."""
        made = self._made(prompts, max_new_tokens, (), samplings)
        return [made.get(place, ()) for place in range(len(prompts))]

    def _made(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        until: Sequence[str],
        samplings: Sequence[Sampling],
        parts: Sequence[int] | None = None,
    ) -> dict[int, NewIds]:
        """Place to new ids, of the prompts that leave room for an answer."""
        lengths = [len(ids) for ids in prompts]
        fitting = [place for place, ids in enumerate(prompts) if self.encoder.problem(ids, max_new_tokens) is None]
        progress = ProgressLog(log, "prompts answered", len(fitting))
        places: list[list[int]] = []
        start = 0
        for count in [len(prompts)] if parts is None else parts:
            of_part = [place for place in fitting if start <= place < start + count]
            places += batches(lengths, of_part, max_new_tokens, self.batch_tokens)
            start += count

        def work(batch: Batch) -> list[NewIds]:
            made = self.generate(batch)
            progress.add(len(made))
            return made

        asked = [
            Batch(
                [prompts[place] for place in batch],
                [self.encoder.room(prompts[place], max_new_tokens) for place in batch],
                tuple(until),
                [samplings[place] for place in batch],
            )
            for batch in places
        ]
        made = self.each(asked, work)
        return {
            place: ids for batch, rows in zip(places, made, strict=True) for place, ids in zip(batch, rows, strict=True)
        }

    def generate(self, batch: Batch) -> list[NewIds]:
        """The new ids of a batch's answers, in order."""
        import torch
        from transformers import LogitsProcessorList, StoppingCriteriaList

        prompts, limits = batch.prompts, batch.limits
        longest = max(map(len, prompts))
        pad = self.tokenizer.pad_token_id
        if pad is None or pad >= self.model.get_input_embeddings().weight.shape[0]:  # the embedding reads it
            pad = self.end_ids[0] if self.end_ids else 0
        ids = torch.tensor([[pad] * (longest - len(p)) + list(p) for p in prompts], device=self.model.device)
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=self.model.device)
        stops = RowStops(self.tokenizer, longest, limits, batch.until)
        with without_gradient(self.model):
            output = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=self._settings(max(limits), pad),
                logits_processor=LogitsProcessorList([RowSampler(batch.samplings)]),
                stopping_criteria=StoppingCriteriaList([stops]),
                trust_remote_code=False,
                synced_gpus=False,  # ranks of a sharded model wait for each other in its own way (`shared_out`)
            )
        rows = output[:, longest:].tolist()
        return [self._to_end(row[:length]) for row, length in zip(rows, stops.lengths, strict=True)]

    def _settings(self, max_new_tokens: int, pad: int) -> Any:
        from transformers import GenerationConfig

        settings = GenerationConfig(
            do_sample=False,
            num_beams=1,
            max_new_tokens=max_new_tokens,
            pad_token_id=pad,
            eos_token_id=self.end_ids or None,
            use_cache=True,
        )
        # The checkpoint's own settings (temperatures, penalties) would be merged in, so they are replaced.
        self.model.generation_config = settings
        return settings

    def _to_end(self, ids: Sequence[int]) -> NewIds:
        end = next((place for place, token in enumerate(ids) if token in self.end_ids), len(ids))
        return tuple(ids[: end + 1])

    def _decode(self, ids: NewIds, until: Sequence[str]) -> Answer:
        kept = ids[:-1] if ids and ids[-1] in self.end_ids else ids
        text = self.tokenizer.decode(list(kept), skip_special_tokens=True)
        return Answer(cut_at(text, until), tokens=len(ids), ids=ids)


class RowStops:
    """Ends each row at its own token limit, or when its new text contains a stop string."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, prompt_length: int, limits: Sequence[int], until: Sequence[str]
    ) -> None:
        self.tokenizer = tokenizer
        self.prompt_length = prompt_length
        self.limits = limits
        self.until = [stop for stop in until if stop]
        self.done = [False] * len(limits)
        self.lengths = list(limits)  # new tokens of each row; padding follows
        # A token is at least one byte of text, so this many last tokens contain a stop string that was just completed.
        self.window = 1 + max((len(stop.encode()) for stop in self.until), default=0)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """Which rows are finished: booleans [rows], from token ids [rows, prompt and new tokens]."""
        import torch

        new = input_ids.shape[1] - self.prompt_length
        open_rows = [row for row, done in enumerate(self.done) if not done]
        recent: dict[int, str] = {}
        if self.until and open_rows:
            tails = input_ids[open_rows, -min(new, self.window) :].tolist()
            texts = self.tokenizer.batch_decode(tails, skip_special_tokens=False)
            recent = dict(zip(open_rows, texts, strict=True))
        for row in open_rows:
            stopped = any(stop in recent.get(row, "") for stop in self.until)
            self.done[row] = stopped or new >= self.limits[row]
            if self.done[row]:
                self.lengths[row] = new
        return torch.tensor(self.done, device=input_ids.device, dtype=torch.bool)


def cut_at(text: str, until: Sequence[str]) -> str:
    """The text before the first of the stop strings."""
    places = [place for stop in until if stop and (place := text.find(stop)) >= 0]
    return text[: min(places)] if places else text


def batches(
    lengths: Sequence[int], indices: Sequence[int], max_new_tokens: int, batch_tokens: int
) -> Iterator[list[int]]:
    """Indices grouped so that rows × (longest prompt + new tokens) stays within the budget; longest first.

    A row that exceeds the budget by itself is a batch of its own.
    """
    batch: list[int] = []
    for index in sorted(indices, key=lambda i: (-lengths[i], i)):
        longest = lengths[batch[0]] if batch else lengths[index]
        if batch and (len(batch) + 1) * (longest + max_new_tokens) > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def context_length(config: Any) -> int | None:
    """Tokens of a model's context by its configuration; None if the configuration does not say."""
    length = getattr(config.get_text_config(), "max_position_embeddings", None)
    return int(length) if length else None


def _end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every id that ends an answer: the EOS of the tokenizer and of the checkpoint's configurations."""
    end_ids: dict[int, None] = {}
    sources = (getattr(holder, "eos_token_id", None) for holder in (tokenizer, model.generation_config, model.config))
    for source in sources:
        for token in source if isinstance(source, list | tuple) else [source]:
            if token is not None:
                end_ids[int(token)] = None
    return list(end_ids)
