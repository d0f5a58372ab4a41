"""The reference log-probs of rows: what is remembered is looked up, the rest is scored and kept.

No row is tokenised whose keys or ids are known, and no model is loaded when every sequence is known. Callers
give `ROWS_AT_ONCE` rows at a time, so that memory does not grow with their number.

Of a pair two sequences are scored. A method may ask for more keys: the first tokens of both sides, whose sums the
longer side's own forward gives; or, of a labelled completion, the row's prompt with its partner's completion.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from alignment.data.rows import PreferenceRow
from alignment.data.tokens import Dropped, Tokenization, TokenSequence, with_firsts
from alignment.logprobs.cache import LogprobCache, RowKeys, as_keys
from alignment.logprobs.effort import ALONE, Effort, Ranks, side_by_side
from alignment.logprobs.keys import PAIR, keys_of, sequence_key, whole_of
from alignment.logprobs.scorer import free_memory, logps, require_finite, score
from alignment.logprobs.token_ids import ROWS_AT_ONCE, Pair, TokenIds
from alignment.models.checkpoint import load_model, load_tokenizer, max_positions
from alignment.models.ends import end_ids
from alignment.models.loading import load_sharded
from alignment.models.packing import by_prompt, evenly, forwarded
from alignment.models.quantised import Quantisation
from alignment.models.size import peak_flops, scoring_flops
from alignment.progress import ProgressLog
from alignment.recipe.forward import TokenPolicy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

PART_SEQUENCES = 8192
PART_SECONDS = 30.0
"""A part is committed after so many sequences or seconds: what a kill can lose."""


@dataclass(frozen=True)
class Item:
    """A sequence to score: its key, a row that holds it as a person finds it, and the ids."""

    key: bytes
    row: str
    sequence: TokenSequence
    firsts: tuple[tuple[bytes, int], ...] = ()
    """Keys of its completion's first tokens, and how many they are."""


Work = list[Item]


@dataclass(frozen=True)
class Reference:
    """One model and one way to run it. `folder` is asked for only when something has to be scored.

    `runs_code` says that the model's own code may run, `sharded` that each of several ranks has a part of the model.
    """

    folder: Callable[[], Path]
    fingerprint: str
    tokens: TokenPolicy
    precision: str
    batch_tokens: int
    runs_code: bool = False
    quantise: Quantisation | None = None
    sharded: bool = False


@dataclass(frozen=True)
class NamedKeys:
    """A row's sequence keys by the name of the sequence, or the reason why the token policy drops the row."""

    row_id: str
    keys: Mapping[str, bytes]
    reason: str | None = None
    partner: str | None = None
    """The row whose completion stands behind this row's prompt."""


@dataclass(frozen=True)
class Pass:
    """What came of a set of rows, in their order.

    `sequences` (distinct ones) = `cache_hits` + `scored`.
    """

    keys: list[NamedKeys]
    values: dict[bytes, tuple[float, int]]
    sequences: int
    scored: int
    effort: Effort

    @property
    def kept(self) -> list[NamedKeys]:
        """The rows that were not dropped."""
        return [row for row in self.keys if row.reason is None]

    @property
    def cache_hits(self) -> int:
        """Sequences that no model had to score."""
        return self.sequences - self.scored

    @property
    def dropped(self) -> Counter[str]:
        """Reason → rows."""
        return Counter(row.reason for row in self.keys if row.reason is not None)


@dataclass
class _Pending:
    """Rows whose keys are all known, the sequences of them that were scored before, and those that never were.

    `firsts` has the keys of first tokens: the key of the sequence whose forward gives them, and how many they are.
    """

    keys: list[NamedKeys] = field(default_factory=list)
    values: dict[bytes, tuple[float, int]] = field(default_factory=dict)
    work: dict[bytes, tuple[str, TokenSequence]] = field(default_factory=dict)
    firsts: dict[bytes, tuple[bytes, int]] = field(default_factory=dict)


def reference_pass(
    row_ids: Sequence[str],
    rows: Callable[[], Iterable[PreferenceRow]],
    reference: Reference,
    cache: LogprobCache,
    ranks: Ranks = ALONE,
    *,
    first_tokens: bool = False,
    partners: Mapping[str, str] | None = None,
) -> Pass | None:
    """Log-probs of the rows named by `row_ids`; `rows` reads their content, and is called only if it is needed.

    `first_tokens` asks for those of both sides' first min(lengths) tokens as well. `partners` has for a labelled row
    the one whose completion is scored behind its prompt as well; `rows` reads the partners' content too.
    Under torchrun every rank calls this, inside `ranks.together()`; rank 0 alone returns a pass, the others None.
    """
    pending = None
    if ranks.rank == 0 and not first_tokens and partners is None:
        pending = _pending(row_ids, rows, reference, cache)
    elif ranks.rank == 0:
        pending = _pending_by_ids(row_ids, rows, reference, cache, partners)
    work = ranks.share(None if pending is None else _dealt(pending.work, pending.firsts, ranks.world_size))
    scores = bool(work)
    longest: TokenSequence | None = max((item.sequence for item in work), key=len, default=None)
    if reference.sharded and (found := [each for each in ranks.gather(longest) if each is not None]):
        logps(_model(reference), [max(found, key=len)], reference.batch_tokens)  # shows all ranks how it is run
        scores = True  # a rank without work makes the others' passes
    efforts = ranks.gather(_score_share(work, reference, cache) if scores else Effort())
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
    values = _known(_needed(map(_named, known.values())), cache)
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
    pending.keys, pending.values = [_named(known[row_id]) for row_id in row_ids], values
    return pending


def _named(row: RowKeys) -> NamedKeys:
    if row.chosen is None or row.rejected is None:
        return NamedKeys(row.row_id, {}, row.reason)
    return NamedKeys(row.row_id, {"chosen": row.chosen, "rejected": row.rejected})


def _pending_by_ids(
    row_ids: Sequence[str],
    rows: Callable[[], Iterable[PreferenceRow]],
    reference: Reference,
    cache: LogprobCache,
    partners: Mapping[str, str] | None,
) -> _Pending:
    """The same for rows whose keys are more than their own sequences': they are made of the rows' ids, all of which
    are remembered."""
    pending, sequences = _Pending(), dict[bytes, tuple[str, TokenSequence]]()
    needed = dict.fromkeys(row_ids)
    if partners is not None:
        needed |= dict.fromkeys(partners[row_id] for row_id in row_ids if row_id in partners)
    ids = ids_of(list(needed), rows, reference, cache)
    for row_id in row_ids:
        pair = ids[row_id]
        if isinstance(pair, Dropped):
            pending.keys.append(NamedKeys(row_id, {}, pair.reason))
            continue
        partner = None if partners is None else partners.get(row_id)
        if partners is None:
            named = with_firsts(dict(zip(PAIR, pair, strict=True)))
        else:
            named = {"completion": pair[0]}
            if partner is not None and not isinstance(other := ids[partner], Dropped):
                named["partner"] = mismatched(pair[0], other[0], reference.tokens.max_length)
        keys = keys_of(reference.fingerprint, named)
        sequences |= {key: (row_id, named[whole_of(name)]) for name, key in keys.items()}
        pending.firsts |= {
            key: (keys[whole_of(name)], len(named[name].completion_ids))
            for name, key in keys.items()
            if key != keys[whole_of(name)]
        }
        pending.keys.append(NamedKeys(row_id, keys, None, partner))
    pending.values = _known(list(sequences), cache)
    pending.work = {key: found for key, found in sequences.items() if key not in pending.values}
    return pending


def ids_of(
    row_ids: Sequence[str],
    rows: Callable[[], Iterable[PreferenceRow]],
    reference: Reference,
    cache: LogprobCache,
) -> dict[str, Pair | Dropped]:
    """The token ids of rows; `rows` is read, and the tokenizer loaded, only where some are not remembered."""
    found = {row_id: pair for batch in cache.token_ids.ids(row_ids) for row_id, pair in batch}
    unknown = {row_id for row_id in row_ids if row_id not in found}
    if unknown:
        tokenization = _tokenization(reference)
        unread = (row for row in rows() if row.row_id in unknown)
        while batch := list(islice(unread, ROWS_AT_ONCE)):
            found |= cache.token_ids.pairs(batch, tokenization)
    return found


def mismatched(row: TokenSequence, partner: TokenSequence, most: int) -> TokenSequence:
    """A row's prompt with its partner's completion, as ids, cut behind `most` tokens."""
    cut = partner.first(max(1, most - len(row.prompt_ids)))
    return TokenSequence(row.prompt_ids, cut.completion_ids, cut.uncounted)


def ring(row_ids: Iterable[str]) -> dict[str, str]:
    """Every row's partner: the next one by row id, and behind the last the first. One alone has none.

    Ids are digests, so partners are as good as drawn; a row that comes or goes moves the partner of one other.
    """
    ordered = sorted(row_ids)
    return dict(zip(ordered, [*ordered[1:], ordered[0]], strict=True)) if len(ordered) > 1 else {}


def _tokenised(
    rows: Sequence[PreferenceRow], reference: Reference, token_ids: TokenIds
) -> Iterator[tuple[str, tuple[RowKeys, list[tuple[bytes, str, TokenSequence]]]]]:
    """Each row with its keys and sequences."""
    pairs = token_ids.pairs(rows, _tokenization(reference))
    for row in rows:
        pair = pairs[row.row_id]
        if isinstance(pair, Dropped):
            yield row.row_id, (RowKeys(row.row_id, None, None, pair.reason), [])
        else:
            chosen, rejected = (sequence_key(reference.fingerprint, sequence) for sequence in pair)
            name = f"{row.row_id} ({row.source}, row {row.source_row})"
            work = [(chosen, name, pair[0]), (rejected, name, pair[1])]
            yield row.row_id, (RowKeys(row.row_id, chosen, rejected), work)


def _tokenization(reference: Reference) -> Tokenization:
    folder = reference.folder()
    tokenizer = load_tokenizer(folder, reference.runs_code)
    return Tokenization(tokenizer, reference.tokens, max_positions(folder), end_ids(folder))


def _dealt(
    work: dict[bytes, tuple[str, TokenSequence]], firsts: Mapping[bytes, tuple[bytes, int]], ranks: int
) -> list[Work]:
    """The work in one share a rank, even in tokens; completions of one prompt stay together.

    First tokens (`firsts`) come out of their whole sequence's forward, once for both.
    """
    begun: dict[bytes, list[tuple[bytes, int]]] = defaultdict(list)
    wholes: dict[bytes, tuple[str, TokenSequence]] = {}
    for key, found in work.items():
        whole, count = firsts.get(key, (key, 0))
        wholes[whole] = found
        if count:
            begun[whole].append((key, count))
    items = [Item(key, name, sequence, tuple(begun[key])) for key, (name, sequence) in wholes.items()]
    sequences = [item.sequence for item in items]
    groups = by_prompt(sequences, range(len(items)))
    dealt = evenly([forwarded(sequences, group) for group in groups], ranks)
    return [[items[index] for place in share for index in groups[place]] for share in dealt]


def _score_share(work: Work, reference: Reference, cache: LogprobCache) -> Effort:
    """Scores and commits part by part, so that a kill loses at most one.

    Raises `BadInput`, naming row and model, for a log-prob that is not finite.
    """
    model = _model(reference)
    sequences = [item.sequence for item in work]
    firsts = [[count for _, count in item.firsts] for item in work] if any(item.firsts for item in work) else None
    part: list[tuple[bytes, float, int]] = []
    forwarded = positions = 0
    progress = ProgressLog(logger, "sequences scored", len(work))
    began = committed = time.monotonic()
    for done in score(model, sequences, reference.batch_tokens, firsts):
        for one in done.scored:
            item = work[one.index]
            require_finite(one.logp, item.row, reference.folder(), reference.precision)
            part.append((item.key, one.logp, item.sequence.counted))
            part += [
                (key, logp, item.sequence.first(count).counted)
                for (key, count), logp in zip(item.firsts, one.firsts, strict=True)
            ]
        forwarded, positions = forwarded + done.tokens, positions + done.positions
        progress.add(len(done.scored))
        if len(part) >= PART_SEQUENCES or time.monotonic() - committed >= PART_SECONDS:
            cache.add_values(part)
            part, committed = [], time.monotonic()
    cache.add_values(part)
    seconds = time.monotonic() - began
    useful, peak = scoring_flops(model, sequences), peak_flops(model.device, model.dtype)
    return Effort(sum(map(len, sequences)), forwarded, positions, seconds, useful, peak)


def _needed(rows: Iterable[NamedKeys]) -> list[bytes]:
    """Distinct sequence keys of rows, in order of appearance."""
    return list(dict.fromkeys(key for row in rows for key in row.keys.values()))


def _known(keys: Sequence[bytes], cache: LogprobCache) -> dict[bytes, tuple[float, int]]:
    """Key → (log-probability, completion tokens) of those that were scored before."""
    if not keys:
        return {}
    found = cache.values(as_keys(keys))
    columns = zip(keys, found["sum"].to_pylist(), found["tokens"].to_pylist(), strict=True)
    return {key: (logp, count) for key, logp, count in columns if logp is not None}


_loaded: dict[tuple[str, str, bool], PreTrainedModel] = {}
"""The last model used, by fingerprint, device and whether it is sharded: consecutive shards share one load."""


def _load(reference: Reference) -> PreTrainedModel:
    if reference.sharded:
        return load_sharded(reference.folder(), reference.precision, runs_code=reference.runs_code)
    return load_model(
        reference.folder(), reference.precision, runs_code=reference.runs_code, quantise=reference.quantise
    )


def _model(reference: Reference) -> PreTrainedModel:
    from alignment.models.checkpoint import default_device

    key = (reference.fingerprint, str(default_device()), reference.sharded)
    if key not in _loaded:
        _loaded.clear()  # before the next one arrives, so that two are never held
        _loaded[key] = _load(reference)
    return _loaded[key]
