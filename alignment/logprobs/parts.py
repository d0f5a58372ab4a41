"""A growing table in a folder of immutable Parquet parts, on a local disk or any fsspec store.

A part appears whole or not at all and is never written again, so readers and writers need no lock. Two writers that
add the same key do no harm: the first in the order of names is read. Pages carry checksums, verified for all that is
read; a part that is cut short or altered is set aside under another name and its rows are missing, which costs their
recomputation and nothing else.

A look-up opens the parts whose name says that they may hold a key, and reads the row groups of them that may. Parts
of earlier versions have no range in their names and one unsorted row group; they are read like the others, whole.
"""

from __future__ import annotations

import logging
import os
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from alignment.errors import one_line
from alignment.logprobs.copies import Copies, remove_abandoned
from alignment.logprobs.row_groups import (
    LAST,
    Asked,
    Footer,
    asked_for,
    batches,
    footer_of,
    key_prefixes,
    prefixes,
    read_groups,
)
from alignment.store import Store
from alignment.store.place import explain_no_space, matching, write_durably

logger = logging.getLogger(__name__)

MANY_RUNS = 8
"""Small runs that are merged into one; a look-up of one key opens a part of each."""
WHOLE_RUN = 64 << 20
"""Bytes of a run that is merged with no other: what a merge holds in memory at a time."""
PART_BYTES = 2 << 20
"""Bytes in memory of one part of a sorted run."""
SET_ASIDE = ".corrupt"
LISTINGS = 5
CHANGING = "{folder}: its parts keep changing while they are read"

_NAME = re.compile(r"part-(?:([0-9a-f]{16})-([0-9a-f]{16})-)?([0-9a-f]{32})(?:\.\d+)?(\.whole)?\.parquet")


@dataclass(frozen=True)
class Part:
    """One file. Its keys' prefixes lie in `low` … `high`; parts written together share their `run`."""

    path: str
    size: int
    low: int
    high: int
    run: str
    whole: bool
    """Of a run that is merged with no other."""
    ranged: bool
    """Its name says its range; those of earlier versions do not."""


class Parts:
    """Parts `<store>/<folder>/part-*.parquet` of one schema, whose first column is the key."""

    def __init__(
        self,
        store: Store,
        folder: str,
        schema: pa.Schema,
        sound: Callable[[pa.Table], pa.Array] | None = None,
        *,
        by_key: bool = True,
        group_rows: int = 1024,
        repetitive: Sequence[str] = (),
    ) -> None:
        """`sound` says which rows of a table count; others are as if they were not there.

        Parts are sorted `by_key`, for look-ups of few rows; else rows stay in the order in which they came, so that
        what came together is read together, and the keys of a part are remembered. `repetitive` columns have few
        distinct values.
        """
        self.sound = sound
        self.store = store
        self.folder = store.path(folder)
        self.schema = schema
        self.key = schema.names[0]
        self.by_key = by_key
        self.group_rows = group_rows
        self.repetitive = list(repetitive)
        self.copies = None if store.is_local else Copies(store, folder)

    def lookup(self, keys: pa.Array) -> pa.Table:
        """The columns beside the key, a row for every key asked for in its order; null where it is missing."""
        held = pa.concat_tables([self.schema.empty_table(), *self.scan(keys)])
        return held.drop_columns([self.key]).take(pc.index_in(keys, value_set=held[self.key]))

    def scan(self, keys: pa.Array) -> Iterator[pa.Table]:
        """The rows with these keys in tables of about `READ_BYTES` at most; a row may come more than once.

        A part that vanished was merged into a newer one: the folder is listed again.
        """
        if not len(keys):
            return
        asked = asked_for(keys)
        for _ in range(LISTINGS):
            try:
                found = self.parts()
                ranges = np.array([(part.low, part.high) for part in found], np.uint64).reshape(-1, 2)
                for place in asked.among(*ranges.T):
                    yield from self._read(found[place], asked)
                return
            except FileNotFoundError:
                continue
        raise OSError(CHANGING.format(folder=self.folder))

    def append(self, rows: pa.Table) -> None:
        """Commits the rows as a new run, of one part unless they are very many; an empty table writes nothing."""
        if not rows.num_rows:
            return
        rows, run = rows.cast(self.schema), uuid.uuid4().hex
        tail = ".whole.parquet" if rows.nbytes >= WHOLE_RUN else ".parquet"
        pieces = 1
        if self.by_key:
            rows = by_key_once(rows, self.key)
            pieces = max(1, rows.nbytes // PART_BYTES)
        each = -(-rows.num_rows // pieces)
        for number, start in enumerate(range(0, rows.num_rows, each)):
            piece = rows.slice(start, each)
            found = prefixes(piece[self.key].combine_chunks())
            self._write(f"part-{found.min():016x}-{found.max():016x}-{run}.{number}{tail}", piece)

    def compact(self, at_least: int = MANY_RUNS) -> None:
        """Merges small runs when they are many, and sorts parts of earlier versions.

        A crash in between leaves rows twice, which is harmless.
        """
        gathered: dict[str, pa.Table] = {}
        try:
            found = self.parts()
            old = {part.path for part in found if self.by_key and not part.ranged and part.size > PART_BYTES}
            small = [part for part in found if part.path in old or (not part.whole and part.size < WHOLE_RUN)]
            if len({part.run for part in small}) < at_least and not old:
                return
            for part in small:
                for table in self._whole(part):
                    gathered[part.path] = self._counted(table)
                if part is small[-1] or sum(table.nbytes for table in gathered.values()) >= WHOLE_RUN:
                    self._merge(gathered)
                    gathered = {}
        except FileNotFoundError:
            return  # another process is merging them

    def erase(self, keys: pa.Array) -> int:
        """Rewrites the parts that hold rows with these keys, without them; returns how many rows went.

        What was set aside, or never arrived because its writer died, may hold them too, and goes whole.
        """
        erased, asked = 0, asked_for(keys)
        for _ in range(LISTINGS):
            try:
                for part in self.parts():
                    for table in self._whole(part, asked):
                        hit = pc.is_in(table[self.key], value_set=keys)
                        if count := pc.sum(hit).as_py():
                            self.append(table.filter(pc.invert(hit)))
                            self._remove(part.path)
                            erased += count
                break
            except FileNotFoundError:
                continue
        else:
            raise OSError(CHANGING.format(folder=self.folder))
        for path in self.store.matching(self.folder, f"part-*{SET_ASIDE}"):
            self._remove(path)
        remove_abandoned(Path(self.folder) if self.copies is None else self.copies.folder)
        return erased

    def parts(self) -> list[Part]:
        """All parts in the order of their names."""
        found = []
        for path, size in sorted(self._listed()):
            if (name := _NAME.fullmatch(path.rpartition("/")[2])) is not None:
                low, high, run, whole = name.groups()
                span = (0, LAST) if low is None else (int(low, 16), int(high, 16))
                found.append(Part(path, size, *span, run, whole is not None, low is not None))
        if self.copies is not None:
            self.copies.keep_only({PurePosixPath(part.path).name for part in found})
        return found

    def _listed(self) -> Iterator[tuple[str, int]]:
        """Raises `FileNotFoundError` where a part vanished meanwhile."""
        if self.copies is not None:
            found = matching(self.store.fs, self.folder, "part-*.parquet")
            yield from ((path, int(about["size"])) for path, about in found.items())
        elif Path(self.folder).is_dir():
            with os.scandir(self.folder) as entries:  # a fifth of the time of a glob
                yield from ((one.path, one.stat().st_size) for one in entries if one.name.startswith("part-"))

    # Reading one part ---------------------------------------------------------------------------

    def _read(self, part: Part, asked: Asked) -> Iterator[pa.Table]:
        """What a part holds of the keys; nothing where it cannot be read."""

        def tables(path: str) -> Iterator[pa.Table]:
            footer = footer_of(path, part.size, self.schema)
            for groups in batches(footer.metadata, self._groups(path, part.size, footer, asked)):
                lows, highs = footer.lows[groups], footer.highs[groups]
                table = read_groups(path, footer, groups)
                wanted = asked.between(int(lows.min()), int(highs.max()))
                yield self._counted(table.filter(pc.is_in(table[self.key], value_set=wanted)))

        yield from self._guarded(part, tables)

    def _groups(self, path: str, size: int, footer: Footer, asked: Asked) -> list[int]:
        """Row groups that may hold some of the keys: by their range, or by what their keys begin with."""
        if self.by_key:
            return asked.among(footer.lows, footer.highs)
        hit = np.isin(key_prefixes(path, size, self.schema), asked.prefixes)
        return [int(group) for group in np.unique(np.searchsorted(footer.ends, np.nonzero(hit)[0], "right"))]

    def _whole(self, part: Part, asked: Asked | None = None) -> list[pa.Table]:
        """All rows of a part; none where it cannot be read, or has certainly none of the keys that are asked for."""

        def tables(path: str) -> Iterator[pa.Table]:
            footer = footer_of(path, part.size, self.schema)
            if asked is None or self._groups(path, part.size, footer, asked):
                yield read_groups(path, footer, range(footer.metadata.num_row_groups))

        return list(self._guarded(part, tables))

    def _counted(self, table: pa.Table) -> pa.Table:
        return table if self.sound is None else table.filter(self.sound(table))

    def _guarded(self, part: Part, tables: Callable[[str], Iterable[pa.Table]]) -> Iterator[pa.Table]:
        """What `tables` reads from a part, given its local path; a part that it cannot read is set aside.

        A damaged copy of a remote part is brought again before the part itself is doubted.
        """
        for fresh in (False, True):
            if fresh:
                footer_of.cache_clear()
                key_prefixes.cache_clear()
            path = part.path if self.copies is None else str(self.copies.bring(part.path, part.size, fresh=fresh))
            try:
                yield from tables(path)
                return
            except (pa.ArrowException, OSError) as error:
                if isinstance(error, OSError) and error.errno is not None:
                    raise  # the disk's or the network's own, which says nothing about the part
                if self.copies is None or fresh:
                    why = one_line(error)
                    logger.warning("%s cannot be read (%s): set aside, its rows are computed again", part.path, why)
                    self._set_aside(part.path)
                    return

    # Writing and removing -----------------------------------------------------------------------

    def _write(self, name: str, rows: pa.Table) -> None:
        stream = pa.BufferOutputStream()
        pq.write_table(
            rows,
            stream,
            row_group_size=self.group_rows,
            compression="zstd",
            write_page_checksum=True,
            write_statistics=[self.key],
            use_dictionary=self.repetitive or False,
        )
        data = stream.getvalue().to_pybytes()
        with explain_no_space(self.folder):
            self.store.fs.makedirs(self.folder, exist_ok=True)
            if self.copies is not None:
                self.store.fs.pipe_file(f"{self.folder}/{name}", data)
                self.copies.put(name, data)
                return
            arriving = Path(self.folder, f".{name}")
            try:
                write_durably(arriving, data)
                arriving.replace(Path(self.folder, name))
            finally:
                arriving.unlink(missing_ok=True)

    def _merge(self, parts: dict[str, pa.Table]) -> None:
        if not parts:
            return
        rows = pa.concat_tables(parts.values())
        self.append(rows if self.by_key else first_of_each(rows, self.key))
        for path in parts:
            self._remove(path)

    def _set_aside(self, path: str) -> None:
        try:
            self.store.fs.mv(path, path + SET_ASIDE)
        except FileNotFoundError:
            logger.info("%s was set aside by another process", PurePosixPath(path).name)

    def _remove(self, path: str) -> None:
        if self.copies is not None:
            self.copies.forget(PurePosixPath(path).name)
        try:
            self.store.fs.rm_file(path)
        except FileNotFoundError:
            logger.info("%s was removed by another process", PurePosixPath(path).name)


def by_key_once(table: pa.Table, key: str) -> pa.Table:
    """The table with the first row of every key, in the order of keys."""
    table = table.take(pc.sort_indices(table[key])).combine_chunks()
    column = table[key].combine_chunks()
    changes = pc.not_equal(column[1:], column[:-1])
    return table.filter(pa.concat_arrays([pa.array([True]), changes]))


def first_of_each(table: pa.Table, key: str) -> pa.Table:
    """The table with the first row of every key, in the order keys first appear."""
    column = table[key].combine_chunks()
    first = pc.equal(pc.index_in(column, value_set=column), pa.array(range(len(column)), pa.int32()))
    return table.filter(first)
