"""From a row to token ids: the one function that scorer and trainers share.

Every sequence has one BOS (where the tokenizer uses one) and ends with one EOS, unless truncation cut
the end off. Its prompt ends where the ids of the prompt alone and those of prompt + this completion
part, so a token that merges the prompt's last letters with the completion's first is scored as part of
the completion. A first token that has nothing before it is counted to the prompt: nothing predicts it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from alignment.errors import BadInput

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from alignment.recipe import TokenPolicy

Messages = Sequence[Mapping[str, str]]
Ids = tuple[int, ...]

TOKENS_VERSION = 1
"""Raised when a row's ids can change; part of the keys under which they are remembered."""

TOO_LONG = "too long"
NO_ROOM = "no room for the completion"
NOTHING_TO_COUNT = "no countable token"
TEMPLATE_REFUSED = "refused by the chat template"


class Pair(Protocol):
    """What `Tokenization.pair` reads of a preference row."""

    @property
    def form(self) -> str: ...
    @property
    def prompt(self) -> str | Messages: ...
    @property
    def chosen(self) -> str | Messages | None: ...
    @property
    def rejected(self) -> str | Messages | None: ...


@dataclass(frozen=True)
class TokenSequence:
    """One prompt with one completion; both hold at least one id, and every completion id counts."""

    prompt_ids: Ids
    completion_ids: Ids

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


@dataclass(frozen=True)
class Dropped:
    """A row that becomes no sequence: `reason` is one of a few fixed words, `detail` says more."""

    reason: str
    detail: str = ""


class _TemplateError(Exception):
    """The chat template has no form for this row."""


class Tokenization:
    """A tokenizer with a token policy.

    `keep_start` cuts the completion's end, EOS included: an ending that is not one is not taught.
    `keep_end` cuts the prompt's start and keeps its BOS; it never cuts into the completion.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, policy: TokenPolicy, max_positions: int | None = None
    ) -> None:
        """Raises `BadInput` when the policy allows more tokens than the model has positions for."""
        if max_positions is not None and policy.max_length > max_positions:
            raise BadInput(
                f"{policy.max_length} tokens are more than the model's {max_positions} positions",
                field="tokens.max_length",
            )
        if tokenizer.eos_token_id is None:
            raise BadInput("the tokenizer has no EOS token, so no completion could end")
        self.tokenizer = tokenizer
        self.policy = policy
        self.eos = int(tokenizer.eos_token_id)
        self._ids: dict[int, int] = {}
        alone = self._encode("a", special=True)
        self.bos = tokenizer.bos_token_id if alone[0] == tokenizer.bos_token_id else None
        """The BOS id where the tokenizer puts one in front by itself, else None."""
        self._adds_eos = len(alone) > 1 and alone[-1] == self.eos

    def pair(self, row: Pair) -> tuple[TokenSequence, TokenSequence] | Dropped:
        """(chosen, rejected) of a preference row; dropped when either side is."""
        if row.chosen is None or row.rejected is None:
            raise ValueError("an unpaired row has no chosen and rejected side")
        chosen = self.completion(row.form, row.prompt, row.chosen)
        if isinstance(chosen, Dropped):
            return chosen
        rejected = self.completion(row.form, row.prompt, row.rejected)
        return rejected if isinstance(rejected, Dropped) else (chosen, rejected)

    def completion(self, form: str, prompt: str | Messages, completion: str | Messages) -> TokenSequence | Dropped:
        """One prompt with one completion, both strings (`form` "text") or both messages ("chat")."""
        if isinstance(prompt, str) and isinstance(completion, str) and form == "text":
            before, whole = self._plain(prompt), self._plain(prompt + completion)
        elif form == "chat" and not isinstance(prompt, str) and not isinstance(completion, str):
            try:
                before = self._chat(prompt, generation_prompt=True)
                whole = self._chat([*prompt, *completion], generation_prompt=False)
            except _TemplateError as error:
                return Dropped(TEMPLATE_REFUSED, str(error))
        else:
            raise ValueError(f"form '{form}' does not fit a {type(prompt).__name__} prompt")
        boundary = common_prefix(before, whole)
        answer = self._closed(whole[boundary:])
        if not boundary:  # nothing stands before the first token, so nothing predicts it
            return self._fitted(answer[:1], answer[1:])
        return self._fitted(whole[:boundary], answer)

    def _encode(self, text: str, *, special: bool) -> list[int]:
        ids = self.tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
        return [self._ids.setdefault(i, i) for i in ids]  # one object an id: a shard's sequences fit in memory

    def _plain(self, text: str) -> Ids:
        ids = self._encode(text, special=True)
        return self._opened(ids[:-1] if self._adds_eos else ids)

    def _chat(self, messages: Messages, *, generation_prompt: bool) -> Ids:
        from jinja2 import TemplateError, TemplateSyntaxError

        if not self.tokenizer.chat_template:
            raise BadInput(
                "rows are conversations and the tokenizer has no chat template: give one",
                field="base_model.chat_template",
            )
        try:
            text = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages], tokenize=False, add_generation_prompt=generation_prompt
            )
        except TemplateSyntaxError as error:
            raise BadInput(f"the chat template is malformed: {error}", field="base_model.chat_template") from error
        except (TemplateError, TypeError, ValueError, IndexError) as error:  # what a template does to odd rows
            raise _TemplateError(str(error) or type(error).__name__) from error
        return self._opened(self._encode(str(text), special=False))

    def _opened(self, ids: Sequence[int]) -> Ids:
        """With one BOS in front where the tokenizer or the template wants one; never two."""
        bos = self.tokenizer.bos_token_id
        start = 0
        while start < len(ids) and ids[start] == bos:
            start += 1
        return ((bos,) if start or self.bos is not None else ()) + tuple(ids[start:])

    def _closed(self, ids: Ids) -> Ids:
        """With one EOS at the end: blank text that a template leaves after it is cut, a missing one appended."""
        last = max((index for index, token in enumerate(ids) if token == self.eos), default=None)
        if last is not None and not self.tokenizer.decode(ids[last + 1 :], skip_special_tokens=False).strip():
            ids = ids[: last + 1]
        while ids and ids[-1] == self.eos:
            ids = ids[:-1]
        return (*ids, self.eos)

    def _fitted(self, prompt: Ids, completion: Ids) -> TokenSequence | Dropped:
        limit, truncation = self.policy.max_length, self.policy.truncation
        excess = len(prompt) + len(completion) - limit
        detail = f"{len(prompt) + len(completion)} tokens > max_length {limit}"
        if excess > 0:
            if truncation == "drop":
                return Dropped(TOO_LONG, detail)
            if truncation == "keep_start":
                completion = completion[: max(0, limit - len(prompt))]
                if not completion:
                    return Dropped(NO_ROOM, f"prompt of {len(prompt)} tokens, max_length {limit}")
            else:
                kept = 1 if prompt[0] == self.tokenizer.bos_token_id else 0
                left = len(prompt) - kept - excess
                if left < (0 if kept else 1):
                    return Dropped(TOO_LONG, f"completion of {len(completion)} tokens, max_length {limit}")
                prompt = prompt[:kept] + prompt[len(prompt) - left :]
        if not completion:
            return Dropped(NOTHING_TO_COUNT)
        return TokenSequence(prompt, completion)


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    for index, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return index
    return min(len(one), len(other))
