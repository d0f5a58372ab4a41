"""The token ids of rows, kept under what decides them, so that no row is tokenised twice.

Two references with one tokenizer share them, and so do the reference stage and the policy's. Ids are a row's text in
another spelling: whoever erases a row erases them as well (`erase_token_ids`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa

from alignment.data.rows import PreferenceRow
from alignment.data.templates import TODAY, asks_for_date, chat_template_of
from alignment.data.tokens import ROWS_TOGETHER, Dropped, Tokenization, TokenSequence
from alignment.logprobs.keys import policy_digest
from alignment.logprobs.parts import Parts
from alignment.recipe.forward import TokenPolicy
from alignment.store import Store

FOLDER = "cache/token_ids"
LOCK = "token-ids"
ROWS_AT_ONCE = 16_384
"""Pairs that are tokenised, kept, sorted and packed together; more bring no better packing."""
PART_IDS = 8 << 20
"""Ids of one part: what adding rows holds in memory at a time."""
TOKENS = pa.schema(
    [
        ("row_id", pa.string()),
        ("chosen_prompt", pa.int32()),
        ("chosen_ids", pa.list_(pa.int32())),
        ("rejected_prompt", pa.int32()),
        ("rejected_ids", pa.list_(pa.int32())),
        ("reason", pa.string()),
    ]
)
"""`*_prompt` is how many of the ids are the prompt's; `reason` is why the token policy drops the row, else null.

An unpaired row has its completion where a pair has its chosen side, and nothing on the other."""

Pair = tuple[TokenSequence, TokenSequence]


def policy_name(
    tokens: TokenPolicy, about: Mapping[str, Any], folder: Callable[[], Path], runs_code: bool = False
) -> str:
    """The digest under which rows' ids are kept: of a token policy, under the checkpoint that `about` describes
    (`whole_summary`). Its `folder` is fetched only for a date other than the default's, which few templates ask for.
    """
    from alignment.models.checkpoint import load_tokenizer

    is_dated = tokens.today == TODAY or asks_for_date(chat_template_of(load_tokenizer(folder(), runs_code)))
    return policy_digest(tokens, about["tokenizer_digest"], about["end_ids"], is_dated=is_dated)


class TokenIds:
    """What rows became under one token policy (its digest), under `<store>/cache/token_ids`."""

    def __init__(self, store: Store, policy: str) -> None:
        self._store = store
        repetitive = [f"{side}_ids.list.element" for side in ("chosen", "rejected")]
        self._parts = Parts(
            store, f"{FOLDER}/{policy}", TOKENS, by_key=False, group_rows=256, repetitive=[*repetitive, "reason"]
        )

    def pairs(self, rows: Sequence[PreferenceRow], tokenization: Tokenization) -> dict[str, Pair | Dropped]:
        """Row id → (chosen, rejected) ids, or why the row is dropped; rows that are not known are tokenised and kept.
        Of an unpaired row the second is `NOTHING`.

        All of them are in memory: give `ROWS_AT_ONCE` rows at a time.
        """
        known = {row_id: pair for batch in self.ids([row.row_id for row in rows]) for row_id, pair in batch}
        unknown = {row.row_id: row for row in rows if row.row_id not in known}
        fresh: dict[str, Pair | Dropped] = {}
        for start in range(0, len(unknown), ROWS_TOGETHER):
            together = list(unknown.values())[start : start + ROWS_TOGETHER]
            found = tokenization.pairs(together)
            fresh |= {row.row_id: pair for row, pair in zip(together, found, strict=True)}
        self.add_ids(fresh.items())
        return known | fresh

    def ids(self, row_ids: Iterable[str]) -> Iterator[list[tuple[str, Pair | Dropped]]]:
        """Batches of the rows that are known, each row once, in the order in which they are stored."""
        for table in self.tables(row_ids):
            chosen, rejected = _sequences(table, "chosen"), _sequences(table, "rejected")
            columns = zip(table["row_id"].to_pylist(), table["reason"].to_pylist(), chosen, rejected, strict=True)
            yield [
                (row_id, (one, other) if reason is None else Dropped(reason)) for row_id, reason, one, other in columns
            ]

    def reasons(self, row_ids: Iterable[str]) -> dict[str, str | None]:
        """Of the rows that are known why each is dropped, None for those that are not."""
        found: dict[str, str | None] = {}
        for table in self.tables(row_ids):
            found |= zip(table["row_id"].to_pylist(), table["reason"].to_pylist(), strict=True)
        return found

    def tables(self, row_ids: Iterable[str]) -> Iterator[pa.Table]:
        """As `ids`, as Arrow tables of `TOKENS`."""
        wanted = set(row_ids)
        for table in self._parts.scan(pa.array(sorted(wanted), pa.string())):
            once = []
            for row_id in table["row_id"].to_pylist():
                once.append(row_id in wanted)
                wanted.discard(row_id)
            if any(once):
                yield table.filter(pa.array(once))

    def add_ids(self, rows: Iterable[tuple[str, Pair | Dropped]]) -> None:
        """Commits rows in parts of about `PART_IDS`, in their order."""
        part: list[tuple[str, Pair | Dropped]] = []
        size = 0
        for row_id, pair in rows:
            part.append((row_id, pair))
            size += 0 if isinstance(pair, Dropped) else len(pair[0]) + len(pair[1])
            if size >= PART_IDS:
                self._parts.append(_table(part))
                part, size = [], 0
        self._parts.append(_table(part))

    def compact(self) -> None:
        """Merges small parts where they have become many; never while rows are erased."""
        with self._store.alone(LOCK):
            self._parts.compact()

    def erase(self, row_ids: Collection[str]) -> int:
        """Forgets the ids of these rows, and returns of how many there were any."""
        return self._parts.erase(pa.array(sorted(row_ids), pa.string()))

    def count(self, row_ids: Collection[str]) -> int:
        """How many of the rows are known."""
        return sum(table.num_rows for table in self.tables(row_ids))


def erase_token_ids(store: Store, row_ids: Collection[str]) -> int:
    """Erases the rows' ids under every policy, and returns how many there were. Safe to repeat after a crash."""
    if not row_ids:
        return 0
    with store.alone(LOCK):
        return sum(ids.erase(row_ids) for ids in _all(store))


def count_token_ids(store: Store, row_ids: Collection[str]) -> int:
    """How many rows' ids `erase_token_ids` would erase."""
    return sum(ids.count(row_ids) for ids in _all(store)) if row_ids else 0


def _all(store: Store) -> Iterator[TokenIds]:
    for folder in store.matching(store.path(FOLDER), "*"):
        yield TokenIds(store, PurePosixPath(folder).name)


def _table(rows: Sequence[tuple[str, Pair | Dropped]]) -> pa.Table:
    pairs = [None if isinstance(pair, Dropped) else pair for _, pair in rows]
    cells: dict[str, pa.Array] = {"row_id": pa.array([row_id for row_id, _ in rows], pa.string())}
    for place, side in enumerate(("chosen", "rejected")):
        sequences = [None if pair is None else pair[place] for pair in pairs]
        lengths = [0 if one is None else len(one) for one in sequences]
        ids = chain.from_iterable((*one.prompt_ids, *one.stored_ids) for one in sequences if one is not None)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        values = np.fromiter(ids, np.int32, int(offsets[-1]))
        cells[f"{side}_prompt"] = pa.array([0 if one is None else len(one.prompt_ids) for one in sequences], pa.int32())
        cells[f"{side}_ids"] = pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))
    cells["reason"] = pa.array([pair.reason if isinstance(pair, Dropped) else None for _, pair in rows], pa.string())
    return pa.table(cells, schema=TOKENS)


def _sequences(table: pa.Table, side: str) -> list[TokenSequence]:
    """One side of every row; without ids where the row is dropped."""
    lists = table[f"{side}_ids"].combine_chunks()
    flat = _shared(lists.flatten().to_numpy())
    ends = np.cumsum(lists.value_lengths().to_numpy()).tolist()
    starts = [0, *ends[:-1]]
    return [
        TokenSequence.of_stored(tuple(flat[start : start + prompt]), tuple(flat[start + prompt : end]))
        for start, end, prompt in zip(starts, ends, table[f"{side}_prompt"].to_pylist(), strict=True)
    ]


def _shared(ids: np.ndarray) -> list[int]:
    """The ids as Python's numbers, one object a number: at 28 bytes each a shard's would not fit in memory."""
    if not ids.size:
        return []
    uncounted = ids < 0  # as `TokenSequence.stored_ids` has them: few
    plain = np.where(uncounted, 0, ids)
    made = _numbers(int(plain.max()).bit_length())[plain]
    made[uncounted] = ids[uncounted].tolist()
    numbers: list[int] = made.tolist()
    return numbers


@lru_cache(maxsize=1)
def _numbers(bits: int) -> np.ndarray:
    return np.array(range(1 << bits), object)
