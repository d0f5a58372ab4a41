"""From a row to the texts that are encoded: the prompt, and the prompt with its completion.

A prompt has to stand in the whole as it stands alone: where a chat template writes it otherwise once an answer follows,
a model would be trained on a part of the prompt as if it were the answer. Such rows are dropped by name, and so are
those whose thinking the template leaves out. Everything is written in batches, and a prompt once for all that share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from alignment.data.templates import (
    ChatTemplate,
    Messages,
    TemplateRefusal,
    left_out,
    prompt_stands,
    with_system_message,
    without_end,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from alignment.recipe.forward import TokenPolicy

Content = str | Messages

TEMPLATE_REFUSED = "refused by the chat template"
PROMPT_REWRITTEN = "prompt written otherwise once an answer follows"
THOUGHT_LEFT_OUT = "thinking left out by the chat template"


@dataclass(frozen=True)
class Dropped:
    """A row that becomes no sequence: `reason` is one of a few fixed words, `detail` says more."""

    reason: str
    detail: str = ""


class Answered(Protocol):
    """What `Tokenization.completions` reads of a demonstration or an unpaired row."""

    @property
    def form(self) -> str:
        """Whether its contents are plain text or conversations."""
        ...

    @property
    def prompt(self) -> Content:
        """What is answered."""
        ...

    @property
    def completion(self) -> Content | None:
        """The one answer; None for a pair."""
        ...


@dataclass(frozen=True)
class Row:
    """One prompt with one completion, both texts or both messages (the one that is not given is None)."""

    form: str
    prompt: Content
    completion: Content | None


@dataclass(frozen=True)
class Written:
    """An item as the two texts to encode, and what tells how: a template writes BOS and ends itself, and literals of
    special tokens in a person's text are text."""

    before: str
    whole: str
    is_chat: bool
    literals: bool = False


class RowWriter:
    """Writes rows by a tokenizer's chat template and a token policy; `end_texts` are what ends an answer, as text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, policy: TokenPolicy, end_texts: Sequence[str]) -> None:
        self.policy = policy
        self.template = ChatTemplate(tokenizer, policy.today)
        self._end_texts = end_texts
        self._specials = tuple(_special_texts(tokenizer))
        self._openings = {text[:2] for text in self._specials}  # a few, where there may be hundreds of special tokens

    def written(self, rows: Sequence[Answered]) -> list[Written | Dropped]:
        """The texts of each row, in order, or why it has none."""
        written: list[Written | Dropped | None] = [None] * len(rows)
        chats: list[tuple[int, Messages, Messages]] = []
        for index, row in enumerate(rows):
            prompt, completion = row.prompt, row.completion
            if isinstance(prompt, str) and isinstance(completion, str) and row.form == "text":
                if self.policy.plain_text == "as_is":
                    written[index] = self._text(prompt, completion)
                    continue
                prompt = [{"role": "user", "content": prompt}]
                completion = [{"role": "assistant", "content": completion}]
            elif row.form != "chat" or isinstance(prompt, str) or isinstance(completion, str) or completion is None:
                raise ValueError(f"form '{row.form}' does not fit a {type(prompt).__name__} prompt")
            chats.append((index, with_system_message(prompt, self.policy.system), completion))
        for (index, _, _), chat in zip(chats, self._chats([chat[1:] for chat in chats]), strict=True):
            written[index] = chat
        return [one for one in written if one is not None]

    def _text(self, prompt: str, completion: str) -> Written:
        """Plain text as it is. Special tokens are read in it only where a chat template wrote it before: a prompt that
        begins with one. Anywhere else `<s>` or `</s>` is what a person wrote, but for ends of the completion."""
        whole = prompt + completion
        has_literals = any(text in whole for text in self._openings) and any(text in whole for text in self._specials)
        if not has_literals or prompt.startswith(self._specials):
            return Written(prompt, whole, is_chat=False)
        return Written(prompt, prompt + without_end(completion, self._end_texts), is_chat=False, literals=True)

    def _chats(self, chats: Sequence[tuple[Messages, Messages]]) -> list[Written | Dropped]:
        places: dict[object, int] = {}
        prompts: list[Messages] = []
        place_of: list[int] = []
        for prompt, _ in chats:
            place = places.setdefault(tuple(tuple(message.items()) for message in prompt), len(prompts))
            if place == len(prompts):
                prompts.append(prompt)
            place_of.append(place)
        whole = self.template.written([[*prompt, *said] for prompt, said in chats], generation_prompt=False)
        before = self.template.written(prompts, generation_prompt=True)
        # a prompt that begins the whole with its generation prompt stands in it; only others are written alone as well
        parted = [place for place, text in zip(place_of, whole, strict=True) if not _begins(text, before[place])]
        asked = list(dict.fromkeys(parted))
        alone = self.template.written([prompts[place] for place in asked], generation_prompt=False)
        alone_of = dict(zip(asked, alone, strict=True))
        return [
            self._chat(before[place], alone_of.get(place), text, said)
            for place, text, (_, said) in zip(place_of, whole, chats, strict=True)
        ]

    def _chat(
        self,
        before: str | TemplateRefusal,
        alone: str | TemplateRefusal | None,
        whole: str | TemplateRefusal,
        said: Messages,
    ) -> Written | Dropped:
        """`alone` is the prompt without the generation prompt, where it was asked for."""
        if isinstance(before, TemplateRefusal) or isinstance(whole, TemplateRefusal):
            return Dropped(TEMPLATE_REFUSED, str(before if isinstance(before, TemplateRefusal) else whole))
        if _begins(whole, before):
            answer = whole[len(before) :]
        elif not isinstance(alone, str):
            return Dropped(TEMPLATE_REFUSED, str(alone))
        elif prompt_stands(alone, whole, self._end_texts):
            answer = whole[len(without_end(alone, self._end_texts).rstrip()) :]
        else:
            return Dropped(PROMPT_REWRITTEN)
        return Dropped(THOUGHT_LEFT_OUT) if left_out(said, answer) else Written(before, whole, is_chat=True)


def _special_texts(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Every special token as it is written."""
    added = (str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)
    return {text for text in (*tokenizer.all_special_tokens, *added) if text}


def _begins(whole: str | TemplateRefusal, before: str | TemplateRefusal) -> bool:
    return isinstance(whole, str) and isinstance(before, str) and whole.startswith(before)
