"""From a row to token ids: the one function that scorer and trainers share.

Every sequence has one BOS (where the tokenizer uses one) and ends with one end, unless truncation cut it off: the
tokenizer's EOS, or another id that the checkpoint ends an answer with. Its prompt ends where the ids of the prompt
alone and those of prompt + this completion part, so a token that merges the prompt's last letters with the
completion's first is scored as part of the completion. A first token that has nothing before it is counted to the
prompt: nothing predicts it.

Rows are written (`alignment.data.writing`) and encoded in batches, each text once: the tokenizer's library takes most
of the time. A row has the same ids in any batch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from alignment.data.writing import PROMPT_REWRITTEN, Answered, Content, Row, RowWriter, Written
from alignment.data.writing import Dropped as Dropped
from alignment.errors import BadInput

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from alignment.recipe.forward import TokenPolicy

Ids = tuple[int, ...]

TOKENS_VERSION = 2
"""Raised when a row's ids can change; part of the keys under which they are remembered."""
ROWS_TOGETHER = 256
"""Rows of one batch where there are many: more make it no faster."""

TOO_LONG = "too long"
PROMPT_TOO_LONG = "prompt too long"
NO_ROOM = "no room for the completion"
NOTHING_TO_COUNT = "no countable token"
PROMPT_MERGED = "completion merges with the prompt's last tokens"
SIDES_EQUAL = "both sides become the same ids"

MOST_SHORT = 2
"""Ids by which a prompt may end before the rendering of the prompt alone does: merged letters, or an opening of the
answer that the template writes in the generation prompt only."""


class Pair(Protocol):
    """What `Tokenization.pairs` reads of a preference row; an unpaired one has a `completion` instead of sides."""

    @property
    def form(self) -> str:
        """Whether its contents are plain text or conversations."""
        ...

    @property
    def prompt(self) -> Content:
        """What is answered."""
        ...

    @property
    def chosen(self) -> Content | None:
        """The better answer; None for an unpaired row."""
        ...

    @property
    def rejected(self) -> Content | None:
        """The worse answer; None for an unpaired row."""
        ...

    @property
    def completion(self) -> Content | None:
        """The one answer; None for a pair."""
        ...


@dataclass(frozen=True)
class TokenSequence:
    """One prompt with one completion; both hold at least one id, and every completion id counts but those at the
    places `uncounted`, in order, which a policy that masks format tokens names."""

    prompt_ids: Ids
    completion_ids: Ids
    uncounted: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)

    def first(self, count: int) -> TokenSequence:
        """The prompt with the completion's first `count` tokens."""
        uncounted = tuple(place for place in self.uncounted if place < count)
        return TokenSequence(self.prompt_ids, self.completion_ids[:count], uncounted)

    @property
    def counted(self) -> int:
        """How many of the completion's tokens count."""
        return len(self.completion_ids) - len(self.uncounted)

    @property
    def stored_ids(self) -> Ids:
        """The completion's ids as files keep them: one that does not count as its complement, which is negative."""
        if not self.uncounted:
            return self.completion_ids
        uncounted = set(self.uncounted)
        return tuple(~token if place in uncounted else token for place, token in enumerate(self.completion_ids))

    @classmethod
    def of_stored(cls, prompt_ids: Ids, stored_ids: Ids) -> TokenSequence:
        """The inverse of `stored_ids`."""
        if not stored_ids or min(stored_ids) >= 0:
            return cls(prompt_ids, stored_ids)
        uncounted = tuple(place for place, token in enumerate(stored_ids) if token < 0)
        return cls(prompt_ids, tuple(~token if token < 0 else token for token in stored_ids), uncounted)


def first_lengths(sides: Sequence[TokenSequence]) -> list[int]:
    """How many ids each completion has up to its last one that counts among as many as the shortest has; ids behind
    that do not count are taken along, so that the shortest is whole."""
    shortest, lengths = min(side.counted for side in sides), []
    for side in sides:
        length = shortest
        for place in side.uncounted:  # in order: each moves the end by one, as long as it lies before it
            length += place <= length
        lengths.append(length)
    return lengths


def with_firsts(sides: Mapping[str, TokenSequence]) -> dict[str, TokenSequence]:
    """A row's sequences by name, and each again as NAME_first, with as many counted tokens as the shortest has."""
    lengths = first_lengths(list(sides.values()))
    firsts = {f"{name}_first": side.first(length) for (name, side), length in zip(sides.items(), lengths, strict=True)}
    return dict(sides) | firsts


Sequences = tuple[TokenSequence, TokenSequence]
NOTHING = TokenSequence((), ())
"""Stands where an unpaired row would have its second side."""


class Tokenization:
    """A tokenizer with a token policy.

    `keep_start` cuts the completion's end, EOS included: an ending that is not one is not taught.
    `keep_end` cuts the prompt's start and keeps its BOS; it never cuts into the completion.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        policy: TokenPolicy,
        max_positions: int | None = None,
        end_ids: Collection[int] = (),
        vocabulary: int | None = None,
    ) -> None:
        """`end_ids`: what ends an answer beside the tokenizer's EOS (`checkpoint.end_ids`); `vocabulary`: ids that the
        model has embeddings for.

        Raises `BadInput` when the policy allows more tokens than the model has positions for.
        """
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
        self.end_ids = frozenset({self.eos, *end_ids})
        end_texts = tuple(filter(None, map(tokenizer.convert_ids_to_tokens, sorted(self.end_ids))))
        self._writer = RowWriter(tokenizer, policy, end_texts)
        self._vocabulary = vocabulary if vocabulary is not None and len(tokenizer) > vocabulary else None
        self._special_ids: frozenset[int] | None = None
        self._ids = _Kept()
        self._blank: dict[int, bool] = {}
        (alone,) = self._encoded(["a"], special=True)
        self._bos_id: int | None = tokenizer.bos_token_id
        self.bos = self._bos_id if alone[0] == self._bos_id else None
        """The BOS id where the tokenizer puts one in front by itself, else None."""
        self._adds_eos = len(alone) > 1 and alone[-1] == self.eos

    def pair(self, row: Pair) -> Sequences | Dropped:
        """(chosen, rejected) of a preference row; dropped when either side is."""
        return self.pairs([row])[0]

    def pairs(self, rows: Sequence[Pair]) -> list[Sequences | Dropped]:
        """`pair` of each row, in order; of rows that are all unpaired (completion, `NOTHING`)."""
        items: list[Row] = []
        if rows and all(row.completion is not None for row in rows):
            items = [Row(row.form, row.prompt, row.completion) for row in rows if row.completion is not None]
            return [one if isinstance(one, Dropped) else (one, NOTHING) for one in self.completions(items)]
        for row in rows:
            if row.chosen is None or row.rejected is None:
                raise ValueError("an unpaired row has no chosen and rejected side")
            items += (Row(row.form, row.prompt, side) for side in (row.chosen, row.rejected))
        sequences = self.completions(items)
        return [_paired(*sides) for sides in zip(sequences[::2], sequences[1::2], strict=True)]

    def completion(self, form: str, prompt: Content, completion: Content) -> TokenSequence | Dropped:
        """One prompt with one completion, both strings (`form` "text") or both messages ("chat")."""
        return self.completions([Row(form, prompt, completion)])[0]

    def completions(self, rows: Sequence[Answered]) -> list[TokenSequence | Dropped]:
        """`completion` of each row's prompt and completion, in order."""
        written = self._writer.written(rows)
        ids = self._ids_of([one for one in written if isinstance(one, Written)])
        prompts: dict[tuple[str, bool, bool, int], Ids] = {}
        return [one if isinstance(one, Dropped) else self._sequence(one, ids, prompts) for one in written]

    # Ids: every text is encoded once, all of a batch in one call where they are of one kind.

    def _ids_of(self, written: Iterable[Written]) -> dict[tuple[str, bool, bool], list[int]]:
        """(text, is_chat, literals) → ids with one BOS in front, before an end is put behind them."""
        texts: dict[tuple[bool, bool], dict[str, None]] = defaultdict(dict)
        for one in written:
            texts[one.is_chat, one.literals] |= {one.before: None, one.whole: None}
        found: dict[tuple[str, bool, bool], list[int]] = {}
        for (is_chat, literals), asked in texts.items():
            made = self._encoded(list(asked), special=not is_chat, literals=literals)
            for text, ids in zip(asked, made, strict=True):
                found[text, is_chat, literals] = self._opened(ids[:-1] if self._adds_eos and not is_chat else ids)
        return found

    def _encoded(self, texts: list[str], *, special: bool, literals: bool = False) -> list[list[int]]:
        """Ids of each text; `special` adds what the tokenizer adds, `literals` reads no special token in a text."""
        if not self.tokenizer.is_fast:
            made = self.tokenizer(texts, add_special_tokens=special, split_special_tokens=literals, verbose=False)
            return list(made["input_ids"])
        literals = literals or bool(getattr(self.tokenizer, "split_special_tokens", False))
        library = self.tokenizer.backend_tokenizer
        library.no_truncation()
        library.no_padding()
        was, library.encode_special_tokens = library.encode_special_tokens, literals
        try:
            return [made.ids for made in library.encode_batch_fast(texts, add_special_tokens=special)]
        finally:
            library.encode_special_tokens = was

    def _sequence(
        self,
        one: Written,
        ids: Mapping[tuple[str, bool, bool], list[int]],
        prompts: dict[tuple[str, bool, bool, int], Ids],
    ) -> TokenSequence | Dropped:
        """`prompts` are those of the batch so far, which sequences of one prompt share."""
        before, whole = ids[one.before, one.is_chat, one.literals], ids[one.whole, one.is_chat, one.literals]
        boundary = common_prefix(before, whole)
        if boundary < len(before) - MOST_SHORT:
            return Dropped(
                PROMPT_REWRITTEN if one.is_chat else PROMPT_MERGED,
                f"the prompt has {len(before)} tokens, and {boundary} of them begin prompt and answer",
            )
        answer = self._closed(whole[boundary:])
        if not boundary:  # nothing stands before the first token, so nothing predicts it
            return self._fitted(answer[:1], answer[1:])
        name = (one.before, one.is_chat, one.literals, boundary)
        if name not in prompts:
            prompts[name] = tuple(map(self._ids.__getitem__, before[:boundary]))
        return self._fitted(prompts[name], answer)

    def _opened(self, ids: list[int]) -> list[int]:
        """With one BOS in front where the tokenizer or the template wants one; never two."""
        start = 0
        while start < len(ids) and ids[start] == self._bos_id:
            start += 1
        if start:
            return ids[start - 1 :] if start > 1 else ids
        return ids if self.bos is None else [self.bos, *ids]

    def _closed(self, ids: list[int]) -> Ids:
        """With one end: of ends and blank text that a template leaves last the first end is kept, a missing one is
        appended."""
        kept, index = None, len(ids)
        while index and (ids[index - 1] in self.end_ids or self._is_blank(ids[index - 1])):
            index -= 1
            if ids[index] in self.end_ids:
                kept = index
        closed = [*ids, self.eos] if kept is None else ids[: kept + 1]
        return tuple(map(self._ids.__getitem__, closed))

    def _is_blank(self, token: int) -> bool:
        if token not in self._blank:
            self._blank[token] = not self.tokenizer.decode([token], skip_special_tokens=False).strip()
        return self._blank[token]

    def _fitted(self, prompt: Ids, completion: Ids) -> TokenSequence | Dropped:
        policy = self.policy
        limit, most = policy.max_length, policy.max_prompt_length
        if most is not None and len(prompt) > most:
            if policy.truncation != "keep_end":
                return Dropped(PROMPT_TOO_LONG, f"{len(prompt)} tokens > max_prompt_length {most}")
            prompt = self._last(prompt, most)
        excess = len(prompt) + len(completion) - limit
        detail = f"{len(prompt) + len(completion)} tokens > max_length {limit}"
        if excess > 0:
            if policy.truncation == "drop":
                return Dropped(TOO_LONG, detail)
            if policy.truncation == "keep_start":
                completion = completion[: max(0, limit - len(prompt))]
                if not completion:
                    return Dropped(NO_ROOM, f"prompt of {len(prompt)} tokens, max_length {limit}")
            elif len(prompt) - excess < 1:
                return Dropped(TOO_LONG, f"completion of {len(completion)} tokens, max_length {limit}")
            else:
                prompt = self._last(prompt, len(prompt) - excess)
        if not completion:
            return Dropped(NOTHING_TO_COUNT)
        sequence = TokenSequence(prompt, completion, self._uncounted(completion))
        if not sequence.counted:
            return Dropped(NOTHING_TO_COUNT)
        self.require_embeddings(sequence)
        return sequence

    def _uncounted(self, completion: Ids) -> tuple[int, ...]:
        """Places of a completion's special tokens, where the policy masks them."""
        if self.policy.format_tokens == "count":
            return ()
        if self._special_ids is None:
            added = (token for token, about in self.tokenizer.added_tokens_decoder.items() if about.special)
            self._special_ids = self.end_ids.union(self.tokenizer.all_special_ids, added)
        return tuple(place for place, token in enumerate(completion) if token in self._special_ids)

    def require_embeddings(self, sequence: TokenSequence) -> None:
        """Raises `BadInput` for an id that the model has no embedding for."""
        if self._vocabulary is not None:
            largest = max(*sequence.prompt_ids, *sequence.completion_ids)
            if largest >= self._vocabulary:
                raise BadInput(
                    f"the tokenizer gives id {largest} ({self.tokenizer.convert_ids_to_tokens(largest)!r}), and the"
                    f" model has embeddings for {self._vocabulary} only"
                )

    def _last(self, prompt: Ids, count: int) -> Ids:
        """The last `count` ids of a prompt, at least one, its BOS among them."""
        kept = 1 if prompt[0] == self._bos_id else 0
        return prompt[:kept] + prompt[len(prompt) - (count - kept) :]


class _Kept(dict[int, int]):
    """One object an id: a shard's sequences fit in memory."""

    def __missing__(self, token: int) -> int:
        return self.setdefault(token, token)


def _paired(chosen: TokenSequence | Dropped, rejected: TokenSequence | Dropped) -> Sequences | Dropped:
    if isinstance(chosen, Dropped):
        return chosen
    if isinstance(rejected, Dropped):
        return rejected
    return Dropped(SIDES_EQUAL) if chosen == rejected else (chosen, rejected)


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the longest common prefix. Slices are compared: prompts of a thousand ids are usual."""
    low, high = 0, min(len(one), len(other))
    if one[:high] == other[:high]:
        return high
    while high - low > 1:  # the first `low` are equal, the first `high` are not
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low


def require_few_rewritten(dropped: Mapping[str, int], kept: int, policy: TokenPolicy, checkpoint: object) -> None:
    """Raises `BadInput` where more than `max_dropped` of all rows are dropped for `PROMPT_REWRITTEN`.

    `dropped` is reason → rows, `checkpoint` what the chat template belongs to.
    """
    rewritten, rows = dropped.get(PROMPT_REWRITTEN, 0), kept + sum(dropped.values())
    if rewritten > policy.max_dropped * rows:
        raise BadInput(
            f"the chat template of {checkpoint} writes the prompt otherwise once an answer follows in {rewritten} of"
            f" {rows} rows ({rewritten / rows:.1%}): set tokens.system to first_user or drop where it moves the system"
            f" message, or raise tokens.max_dropped ({policy.max_dropped:g})",
            field="tokens.system",
        )
