"""The reference log-probs of pairs: what is remembered is looked up, the rest is scored and kept.

No row is tokenised whose keys or ids are known, and no model is loaded when every sequence is known. Callers
give `ROWS_AT_ONCE` rows at a time, so that memory does not grow with their number.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from alignment.data.rows import PreferenceRow
from alignment.data.tokens import Dropped, Tokenization, TokenSequence
from alignment.logprobs.cache import LogprobCache, RowKeys, as_keys
from alignment.logprobs.effort import ALONE, Effort, Ranks, side_by_side
from alignment.logprobs.keys import sequence_key
from alignment.logprobs.scorer import free_memory, require_finite, score
from alignment.logprobs.token_ids import TokenIds
from alignment.models.checkpoint import load_model, load_tokenizer, max_positions
from alignment.models.ends import end_ids
from alignment.models.packing import by_prompt, forwarded, shares
from alignment.models.size import peak_flops, scoring_flops
from alignment.progress import ProgressLog
from alignment.recipe import TokenPolicy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

PART_SEQUENCES = 8192
PART_SECONDS = 30.0
"""A part is committed after so many sequences or seconds: what a kill can lose."""

Work = list[tuple[bytes, str, TokenSequence]]
"""Sequences to score: the key, a row that holds it as a person finds it, and the ids."""


@dataclass(frozen=True)
class Reference:
    """One model and one way to run it. `folder` is asked for only when something has to be scored.

    `runs_code` says that the model's own code may run.
    """

    folder: Callable[[], Path]
    fingerprint: str
    tokens: TokenPolicy
    precision: str
    batch_tokens: int
    runs_code: bool = False


@dataclass(frozen=True)
class Pass:
    """What came of a set of pairs, in the order of its rows.

    `sequences` (distinct ones) = `cache_hits` + `scored`.
    """

    keys: list[RowKeys]
    values: dict[bytes, tuple[float, int]]
    sequences: int
    scored: int
    effort: Effort

    @property
    def kept(self) -> list[RowKeys]:
        return [row for row in self.keys if row.reason is None]

    @property
    def cache_hits(self) -> int:
        return self.sequences - self.scored

    @property
    def dropped(self) -> Counter[str]:
        """Reason → rows."""
        return Counter(row.reason for row in self.keys if row.reason is not None)


@dataclass
class _Pending:
    """Rows whose keys are all known, the sequences of them that were scored before, and those that never were."""

    keys: list[RowKeys] = field(default_factory=list)
    values: dict[bytes, tuple[float, int]] = field(default_factory=dict)
    work: dict[bytes, tuple[str, TokenSequence]] = field(default_factory=dict)


def reference_pass(
    row_ids: Sequence[str],
    rows: Callable[[], Iterable[PreferenceRow]],
    reference: Reference,
    cache: LogprobCache,
    ranks: Ranks = ALONE,
) -> Pass | None:
    """Log-probs of the rows named by `row_ids`; `rows` reads their content, and is called only if it is needed.

    Under torchrun every rank calls this, inside `ranks.together()`; rank 0 alone returns a pass, the others None.
    """
    pending = _pending(row_ids, rows, reference, cache) if ranks.rank == 0 else None
    work = ranks.share(None if pending is None else _dealt(pending.work, ranks.world_size))
    efforts = ranks.gather(_score_share(work, reference, cache) if work else Effort())
    if pending is None:
        return None
    values = pending.values | _known(list(pending.work), cache)
    needed = _needed(pending.keys)
    if missing := [key for key in needed if key not in values]:
        raise RuntimeError(f"{len(missing)} sequences were scored and are not in the cache")
    return Pass(pending.keys, values, len(needed), len(pending.work), side_by_side(efforts))


def release_model() -> None:
    """Forgets the model that is kept for the next shard, and frees its memory."""
    _loaded.clear()
    free_memory()


def _pending(
    row_ids: Sequence[str],
    rows: Callable[[], Iterable[PreferenceRow]],
    reference: Reference,
    cache: LogprobCache,
) -> _Pending:
    known = {row.row_id: row for row in cache.rows(row_ids) if row is not None}
    values = _known(_needed(known.values()), cache)
    asked = {
        row_id
        for row_id in row_ids
        if (row := known.get(row_id)) is None
        or (row.reason is None and not {row.chosen, row.rejected} <= values.keys())
    }
    pending = _Pending()
    if asked:
        fresh = dict(_tokenised([row for row in rows() if row.row_id in asked], reference, cache.token_ids))
        cache.add_rows(row for row_id, (row, _) in fresh.items() if row_id not in known)
        known |= {row_id: row for row_id, (row, _) in fresh.items()}
        sequences = {key: (name, sequence) for _, pair in fresh.values() for key, name, sequence in pair}
        values |= _known([key for key in sequences if key not in values], cache)
        pending.work = {key: found for key, found in sequences.items() if key not in values}
    pending.keys, pending.values = [known[row_id] for row_id in row_ids], values
    return pending


def _tokenised(
    rows: Sequence[PreferenceRow], reference: Reference, token_ids: TokenIds
) -> Iterator[tuple[str, tuple[RowKeys, Work]]]:
    """Each row with its keys and sequences."""
    folder = reference.folder()
    tokenizer = load_tokenizer(folder, reference.runs_code)
    tokenization = Tokenization(tokenizer, reference.tokens, max_positions(folder), end_ids(folder))
    pairs = token_ids.pairs(rows, tokenization)
    for row in rows:
        pair = pairs[row.row_id]
        if isinstance(pair, Dropped):
            yield row.row_id, (RowKeys(row.row_id, None, None, pair.reason), [])
        else:
            chosen, rejected = (sequence_key(reference.fingerprint, sequence) for sequence in pair)
            name = f"{row.row_id} ({row.source}, row {row.source_row})"
            work = [(chosen, name, pair[0]), (rejected, name, pair[1])]
            yield row.row_id, (RowKeys(row.row_id, chosen, rejected), work)


def _dealt(work: dict[bytes, tuple[str, TokenSequence]], ranks: int) -> list[Work]:
    """The work in one share a rank, even in tokens; completions of one prompt stay together."""
    items = [(key, name, sequence) for key, (name, sequence) in work.items()]
    sequences = [sequence for _, _, sequence in items]
    groups = by_prompt(sequences, range(len(items)))
    dealt = shares([forwarded(sequences, group) for group in groups], ranks)
    return [[items[index] for place in share for index in groups[place]] for share in dealt]


def _score_share(work: Work, reference: Reference, cache: LogprobCache) -> Effort:
    """Scores and commits part by part, so that a kill loses at most one.

    Raises `BadInput`, naming row and model, for a log-prob that is not finite.
    """
    model = _model(reference)
    sequences = [sequence for _, _, sequence in work]
    part: list[tuple[bytes, float, int]] = []
    forwarded = positions = 0
    progress = ProgressLog(logger, "sequences scored", len(work))
    began = committed = time.monotonic()
    for done in score(model, sequences, reference.batch_tokens):
        for one in done.scored:
            require_finite(one.logp, work[one.index][1], reference.folder(), reference.precision)
        part += [(work[one.index][0], one.logp, len(sequences[one.index].completion_ids)) for one in done.scored]
        forwarded, positions = forwarded + done.tokens, positions + done.positions
        progress.add(len(done.scored))
        if len(part) >= PART_SEQUENCES or time.monotonic() - committed >= PART_SECONDS:
            cache.add_values(part)
            part, committed = [], time.monotonic()
    cache.add_values(part)
    seconds = time.monotonic() - began
    useful, peak = scoring_flops(model, sequences), peak_flops(model.device, model.dtype)
    return Effort(sum(map(len, sequences)), forwarded, positions, seconds, useful, peak)


def _needed(rows: Iterable[RowKeys]) -> list[bytes]:
    """Distinct sequence keys of rows, in order of appearance."""
    keys = (key for row in rows for key in (row.chosen, row.rejected) if key is not None)
    return list(dict.fromkeys(keys))


def _known(keys: Sequence[bytes], cache: LogprobCache) -> dict[bytes, tuple[float, int]]:
    """Key → (log-probability, completion tokens) of those that were scored before."""
    if not keys:
        return {}
    found = cache.values(as_keys(keys))
    columns = zip(keys, found["sum"].to_pylist(), found["tokens"].to_pylist(), strict=True)
    return {key: (logp, count) for key, logp, count in columns if logp is not None}


_loaded: dict[tuple[str, str], PreTrainedModel] = {}
"""The last model used, by fingerprint and device: consecutive shards share one load."""


def _model(reference: Reference) -> PreTrainedModel:
    from alignment.models.checkpoint import default_device

    key = (reference.fingerprint, str(default_device()))
    if key not in _loaded:
        _loaded.clear()  # before the next one arrives, so that two are never held
        _loaded[key] = load_model(reference.folder(), reference.precision, runs_code=reference.runs_code)
    return _loaded[key]
