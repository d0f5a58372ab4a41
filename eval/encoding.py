"""Prompts as the ids that a model was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from alignment.errors import BadInput

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LEAST_NEW_TOKENS = 16
"""A prompt that leaves less room than this (or than what is asked for) does not fit the model's context."""

Message = dict[str, str]
Prompt = str | Sequence[Message]
"""Plain text, or chat messages."""


class PromptEncoder:
    """A tokenizer and the length of the model's context, None where that is unknown."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, context: int | None) -> None:
        self.tokenizer = tokenizer
        self.context = context
        alone = self._ids("a", special=True)
        self._adds_start = alone[0] == tokenizer.bos_token_id
        self._adds_end = len(alone) > 1 and alone[-1] == tokenizer.eos_token_id

    @property
    def is_chat(self) -> bool:
        """Whether prompts go through the tokenizer's chat template."""
        return bool(self.tokenizer.chat_template)

    def encode(self, prompt: Prompt) -> list[int]:
        """Ids of a prompt as training has them: messages by the chat template with its generation prompt, text as
        it is; one BOS where the tokenizer or the template wants one, and no EOS. A last message of the assistant's
        is the opening of the answer, which goes on from there.

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
        """New tokens that an answer may take: what is asked for, or what the context leaves."""
        return max_new_tokens if self.context is None else min(max_new_tokens, self.context - len(ids))

    def problem(self, ids: Sequence[int], max_new_tokens: int) -> str | None:
        """Why a prompt cannot be answered, None when it can."""
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
                    list(messages), tokenize=False, add_generation_prompt=not opening, continue_final_message=opening
                )
            )
        except TemplateError as error:
            roles = ", ".join(dict.fromkeys(message["role"] for message in messages))
            raise BadInput(f"the chat template refuses messages of {roles}: {error}", field="chat_template") from error

    def _ids(self, text: str, *, special: bool) -> list[int]:
        return [int(i) for i in self.tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]]
