"""Texts as runs of words, and rows that hardly differ from another.

Words are what `\\w+` finds in the lower-cased text, so that white space, punctuation and capitals make no difference.
A run of words is a 64-bit hash of its words' hashes, the same in every process and on every machine.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from alignment.data.duplicates import Partitions
from alignment.data.rows import ROWS_FILE, decode, text_of

Hashes = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]

WORD = re.compile(r"\w+")
FACTOR = 0x9E3779B97F4A7C15
WORDS_KEPT = 1 << 20


class Words:
    """Hashes the words of texts; the hashes of the latest words are kept."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}

    def of(self, texts: Iterable[str]) -> tuple[Hashes, Places]:
        """The words' hashes of all texts one after the other, and for each word the place of its text."""
        known, flat, counts = self._known, [], []
        for text in texts:
            words = WORD.findall(text.lower())
            counts.append(len(words))
            for word in words:
                if (hashed := known.get(word)) is None:
                    digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
                    hashed = known[word] = int.from_bytes(digest)
                flat.append(hashed)
        if len(known) > WORDS_KEPT:
            known.clear()
        return np.array(flat, np.uint64), np.repeat(np.arange(len(counts)), counts)


def runs(words: Hashes, texts: Places, length: int) -> tuple[Hashes, Places]:
    """Every run of `length` words within a text, and the place of its text."""
    count = len(words) - length + 1
    if count < 1:
        return np.empty(0, np.uint64), np.empty(0, np.int64)
    hashed = np.zeros(count, np.uint64)
    for offset in range(length):
        hashed = hashed * np.uint64(FACTOR) + words[offset : offset + count]
    inside = texts[:count] == texts[length - 1 :]
    return hashed[inside], texts[:count][inside]


TEXT_COLUMNS = ("form", "prompt", "chosen", "rejected", "completion")
BATCH_ROWS = 2048


def row_texts(folder: Path) -> Iterator[list[tuple[str, str, str]]]:
    """Prompt and both answers of a shard's rows as a person reads them, in batches; an unpaired row has one answer."""
    with pq.ParquetFile(str(folder / ROWS_FILE)) as file:
        for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=list(TEXT_COLUMNS)):
            rows = zip(*(batch[name].to_pylist() for name in TEXT_COLUMNS), strict=True)
            yield [
                (_text(form, prompt), _text(form, completion if chosen is None else chosen), _text(form, rejected))
                for form, prompt, chosen, rejected, completion in rows
            ]


def _text(form: str, cell: str | None) -> str:
    return "" if cell is None else text_of(decode(form, cell))


# Near-duplicates by MinHash (Broder 1997): the share of equal minima estimates how many word triples two texts share.
#
# Prompt, chosen and rejected have minima of their own, and a row is a near-duplicate where all three are near. So the
# same two answers in the other order are none, nor are two pairs of one long prompt.

SHINGLE = 3
VALUES = 32
"""Minima of each of the three texts."""
BANDS = 16
"""Rows that share two minima of all three texts in one of so many bands are compared: 0.8 alike are with 99 %."""
SIGNATURE = 3 * VALUES


def _constants(name: str) -> Hashes:
    """(3, `VALUES`) numbers that look random and are the same with every version of every library."""
    named = (f"{name} {role} {value}".encode() for role in range(3) for value in range(VALUES))
    numbers = [int.from_bytes(hashlib.blake2b(each, digest_size=8).digest()) for each in named]
    return np.array(numbers, np.uint64).reshape(3, VALUES)


MULTIPLIERS, OFFSETS = _constants("multiplier") | np.uint64(1), _constants("offset")


def signatures(texts: Sequence[tuple[str, str, str]], words: Words) -> npt.NDArray[np.uint32]:
    """(rows, 3 × `VALUES`): the minima of prompt, chosen and rejected."""
    signed = np.empty((len(texts), SIGNATURE), np.uint32)
    for role in range(3):
        # two words that no text has end each text, so that short ones have a shingle, too
        padded, of_text = words.of(f"{row[role]} \u0394\u0394 \u0394\u0394" for row in texts)
        hashed, owner = runs(padded, of_text, SHINGLE)
        short = np.setdiff1d(np.arange(len(texts)), owner)  # texts without a word
        hashed = np.concatenate([hashed, np.zeros(len(short), np.uint64)])
        owner = np.concatenate([owner, short])
        order = np.argsort(owner, kind="stable")
        hashed, owner = hashed[order], owner[order]
        starts = np.flatnonzero(np.diff(owner, prepend=-1))
        for value in range(VALUES):
            mixed = (hashed * MULTIPLIERS[role, value] + OFFSETS[role, value]) >> np.uint64(32)
            signed[:, role * VALUES + value] = np.minimum.reduceat(mixed, starts)
    return signed


def near_duplicates(folders: Sequence[Path], sizes: Sequence[int], similarity: float, scratch: Path) -> Any:
    """One byte a row, all shards' one after the other: 1 where an earlier row is as alike as `similarity` or more.

    The array is a file in `scratch`, which must not exist, as are the signatures (384 bytes a row) and the bands (256
    bytes a row, gone again): memory grows with neither.
    """
    rows = int(sum(sizes))
    scratch.mkdir(parents=True)
    near = np.memmap(scratch / "near", np.uint8, "w+", shape=(max(rows, 1),))
    signed = np.memmap(scratch / "signatures", np.uint32, "w+", shape=(max(rows, 1), SIGNATURE))
    parts = max(1, -(-rows * BANDS // PAIRS_AT_ONCE))
    bands = Partitions(scratch / "bands", BAND)
    words, first = Words(), 0
    for folder in folders:
        for texts in row_texts(folder):
            signed[first : first + len(texts)] = signatures(texts, words)
            hashed = _band_hashes(signed[first : first + len(texts)])
            records = np.empty(hashed.size, BAND)
            records["band"], records["row"] = hashed.ravel(), np.repeat(np.arange(first, first + len(texts)), BANDS)
            bands.add(
                ((records["band"] >> np.uint64(32)) * np.uint64(parts) >> np.uint64(32)).astype(np.int64), records
            )
            first += len(texts)
    for part in range(parts):
        records = np.sort(bands.take(part), order=("band", "row"))
        begins = np.diff(records["band"], prepend=records["band"][:1] + np.uint64(1)) != 0
        # each is compared with the first of its band and with the one before it
        for other in (records["row"][begins][np.cumsum(begins) - 1], np.roll(records["row"], 1)):
            asked = np.flatnonzero(~begins & (near[records["row"]] == 0))
            for some in np.array_split(asked, len(asked) // COMPARED + 1):
                one, earlier = records["row"][some], other[some]
                near[one[_alike(signed[one], signed[earlier]) >= similarity]] = 1
    return near


BAND = np.dtype([("band", "u8"), ("row", "i8")])
PAIRS_AT_ONCE = 1 << 21
COMPARED = 1 << 14


def _band_hashes(signed: npt.NDArray[np.uint32]) -> Hashes:
    """(rows, `BANDS`): each over its own two minima of every text."""
    grouped = (
        signed.reshape(len(signed), 3, BANDS, VALUES // BANDS).transpose(0, 2, 1, 3).reshape(len(signed), BANDS, -1)
    )
    hashed = np.repeat(np.arange(1, BANDS + 1, dtype=np.uint64)[None], len(signed), 0)
    for value in range(grouped.shape[2]):
        hashed = hashed * np.uint64(FACTOR) + grouped[:, :, value]
        hashed ^= hashed >> np.uint64(29)
    return hashed * np.uint64(FACTOR)


def _alike(one: npt.NDArray[np.uint32], other: npt.NDArray[np.uint32]) -> npt.NDArray[np.float64]:
    """The similarity of the three texts that differ most."""
    alike: npt.NDArray[np.float64] = (one == other).reshape(len(one), 3, VALUES).mean(axis=2).min(axis=1)
    return alike
