"""Evaluation items that stand in training rows, by runs of 13 words (Brown et al. 2020, appendix C)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from alignment.data.embedded import embedded
from alignment.data.hub import hub_records
from alignment.data.manifest import read_manifest
from alignment.data.readers import read_records
from alignment.data.sources import SuiteItems
from alignment.data.statistics import OverlapNumbers
from alignment.data.words import Words, row_texts, runs
from alignment.digest import json_digest
from alignment.store import Artifact, MissingArtifact, Store

Places = npt.NDArray[np.int64]


def strings_in(value: Any) -> Iterator[str]:
    """Every text in a record, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from strings_in(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from strings_in(inner)


def item_texts(items: SuiteItems, suite: str) -> dict[str, list[str]]:
    """The texts that stand in each item of a suite, by its row; raises `BadInput` where they cannot be read."""
    if items.file is not None:
        records = [record.value for record in read_records(items.file.url, items.file.sha256) if not record.problem]
    elif items.embedded is not None:
        records = embedded(items.embedded).suite_items(suite, items.seed)
    else:
        records = [record.value for source in items.hub for record in hub_records(source)]
    return {str(row): list(strings_in(record)) for row, record in enumerate(records, start=1)}


RUN = 13
COMMON = 10
"""A run that stands in more texts of one suite than this is what its questions share, and names no item."""
HELD = 2 / 3
"""A row holds an item where it has more than this share of the runs of one of the item's texts: less is what two
questions of one kind share by chance."""


class ItemRuns:
    """The runs of 13 words of the items of some suites, to be looked for in rows."""

    def __init__(self, suites: Mapping[str, Mapping[str, Iterable[str]]]) -> None:
        """`suites` maps a suite's name to its items by id, each as the texts that stand in it."""
        self.items: list[tuple[str, str]] = []
        self.asked: dict[str, int] = {}
        self._words = Words()
        item_of_text: list[int] = []
        found = [(np.empty(0, np.uint64), np.empty(0, np.int64))]
        for suite, items in suites.items():
            first, texts = len(item_of_text), []
            for item, told in items.items():
                for text in told:
                    texts.append(text)
                    item_of_text.append(len(self.items))
                self.items.append((suite, item))
            hashed, of_text = _distinct(*runs(*self._words.of(texts), RUN))
            _, counts = np.unique(hashed, return_counts=True)
            own = np.repeat(counts, counts) <= COMMON
            found.append((hashed[own], of_text[own] + first))
            self.asked[suite] = len({item_of_text[text] for text in (of_text[own] + first).tolist()})
        hashed, of_text = (np.concatenate(parts) for parts in zip(*found, strict=True))
        order = np.argsort(hashed, kind="stable")
        self._runs, self._texts = hashed[order], of_text[order]
        self._item_of = np.array(item_of_text, np.int64)
        self._sizes = np.bincount(of_text, minlength=len(item_of_text))

    def found_in(self, rows: Sequence[tuple[str, ...]]) -> list[set[int]]:
        """For each row, given as its texts, the places in `items` of those it holds."""
        flat, of_text = self._words.of(text for row in rows for text in row)
        hashed, of_run = runs(flat, of_text, RUN)
        hashed, of_run = _distinct(hashed, of_run // (len(rows[0]) if rows else 1))
        low, high = (np.searchsorted(self._runs, hashed, side) for side in ("left", "right"))
        found: list[set[int]] = [set() for _ in rows]
        if len(hits := np.flatnonzero(high > low)):
            texts = np.concatenate([self._texts[low[hit] : high[hit]] for hit in hits])
            pairs = np.repeat(of_run[hits], (high - low)[hits]) * len(self._sizes) + texts
            pairs, counts = np.unique(pairs, return_counts=True)
            row, text = pairs // len(self._sizes), pairs % len(self._sizes)
            for one in np.flatnonzero(counts > HELD * self._sizes[text]):
                found[row[one]].add(int(self._item_of[text[one]]))
        return found


def _distinct(hashed: npt.NDArray[np.uint64], owner: Places) -> tuple[npt.NDArray[np.uint64], Places]:
    """Each run of an owner once, in the order of runs."""
    order = np.lexsort((owner, hashed))
    hashed, owner = hashed[order], owner[order]
    new = np.ones(len(hashed), bool)
    new[1:] = (np.diff(hashed) != 0) | (np.diff(owner) != 0)
    return hashed[new], owner[new]


@dataclass(frozen=True)
class ShardOverlap:
    """Of one shard: for each suite, which rows hold an item of it; and the items by suite."""

    rows: dict[str, Places]
    items: dict[str, set[str]]


def overlap(folder: Path, runs_of: ItemRuns) -> ShardOverlap:
    """Looks for items in all rows of a shard, a batch in memory at a time."""
    rows: dict[str, list[int]] = {suite: [] for suite in runs_of.asked}
    items: dict[str, set[str]] = {suite: set() for suite in runs_of.asked}
    place = 0
    for batch in row_texts(folder):
        for held in runs_of.found_in(batch):
            named = [runs_of.items[one] for one in held]
            for suite in {suite for suite, _ in named}:
                rows[suite].append(place)
            for suite, item in named:
                items[suite].add(item)
            place += 1
    return ShardOverlap({suite: np.array(found, np.int64) for suite, found in rows.items()}, items)


def overlap_numbers(asked: ItemRuns, shards: Iterable[ShardOverlap]) -> OverlapNumbers:
    """What was found in some shards, put together."""
    rows = dict.fromkeys(asked.asked, 0)
    items: dict[str, set[str]] = {suite: set() for suite in asked.asked}
    for shard in shards:
        for suite in asked.asked:
            rows[suite] += len(shard.rows[suite])
            items[suite] |= shard.items[suite]
    named = {suite: sorted(found) for suite, found in items.items() if found}
    return OverlapNumbers(rows=rows, items=named, asked={suite: count for suite, count in asked.asked.items() if count})


FORMAT = 1


def overlap_of(store: Store, manifest: Artifact, suites: Mapping[str, Mapping[str, Iterable[str]]]) -> OverlapNumbers:
    """The overlap of a manifest's shards with items, given as `ItemRuns` takes them.

    What was found in a shard is kept in the store's cache under the contents of both, as item ids and numbers of rows
    without any text. So a night looks through new shards only. An erased shard is passed over.
    """
    given = {suite: {item: list(texts) for item, texts in items.items()} for suite, items in suites.items()}
    asked, name = ItemRuns(given), json_digest([FORMAT, given])[:40]
    found = []
    for shard in read_manifest(store.fetch(manifest)).shards:
        path = store.path("cache", "overlap", name, f"{shard.row_digest[:40]}.json")
        known = _known(store, path, asked)
        if known is None:
            try:
                known = overlap(store.fetch(shard.shard), asked)
            except MissingArtifact:
                continue
            kept = {suite: [known.rows[suite].tolist(), sorted(known.items[suite])] for suite in asked.asked}
            store.fs.makedirs(store.path("cache", "overlap", name), exist_ok=True)
            store.fs.pipe_file(path, json.dumps(kept).encode())
        found.append(known)
    return overlap_numbers(asked, found)


def _known(store: Store, path: str, asked: ItemRuns) -> ShardOverlap | None:
    try:
        kept = json.loads(store.fs.cat_file(path))
        rows = {suite: np.array(kept[suite][0], np.int64) for suite in asked.asked}
        return ShardOverlap(rows, {suite: set(kept[suite][1]) for suite in asked.asked})
    except (FileNotFoundError, ValueError, KeyError):  # not there, or cut short: it is found again
        return None
