"""Answers of one checkpoint from several processes, each of which has loaded it once.

The first rank leads: it alone runs the stage, and deals batches of prompts to all ranks, even in tokens. The others
serve until it is done. A batch is the same as in one process, and so are its answers. With a folder to keep them in,
each rank writes down its batches as it makes them; a launch that goes on after one was lost makes only what is missing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from alignment.digest import json_digest
from alignment.generation.engine import Served
from alignment.generation.generator import Batch, Each, NewIds
from alignment.generation.journal import append_line
from alignment.logprobs.effort import Ranks
from alignment.models.packing import evenly
from alignment.stages.stage import Context

Work = Callable[[Batch], list[NewIds]]


@dataclass(frozen=True)
class _Share:
    """What the first rank tells another: the model, as arguments of `Served`, and the batches to make with it; without
    batches the model is loaded. No model is the end."""

    model: tuple[Any, ...] | None = None
    batches: list[Batch] | None = None


@dataclass
class Workers:
    """All ranks, as the first one sees them; a single process is its only worker."""

    ranks: Ranks
    kept: Path | None = None
    """The folder for batches that are made."""
    tokens: list[int] = field(default_factory=list)
    """Tokens of prompts and answers that each rank has put through the model."""

    @property
    def per_rank(self) -> list[int]:
        """`tokens` for a summary: empty for a single process."""
        return self.tokens if self.ranks.world_size > 1 else []

    def of(self, served: Served) -> Each:
        """Makes batches with the checkpoint, which all ranks load now, while the caller loads its own."""
        model = (served.checkpoint, served.precision, served.batch_tokens, served.tokens)
        if self.ranks.world_size > 1:
            self.ranks.share([_Share(model)] * self.ranks.world_size)
        return partial(self._each, model)

    def _each(self, model: tuple[Any, ...], batches: Sequence[Batch], work: Work) -> list[list[NewIds]]:
        made = _kept(self.kept, batches)
        missing = [place for place in range(len(batches)) if place not in made]
        if missing:
            dealt = evenly([batches[place].positions for place in missing], self.ranks.world_size)
            shares = [_Share(model, [batches[missing[index]] for index in indices]) for indices in dealt]
            mine = self.ranks.share(shares).batches or []
            everyones = self.ranks.gather(_make(mine, work, self._file(0)))
            for indices, rows in zip(dealt, everyones, strict=True):
                made |= {missing[index]: ids for index, ids in zip(indices, rows, strict=True)}
            spent = [sum(_tokens(batches[missing[index]], made[missing[index]]) for index in part) for part in dealt]
            self.tokens = [sum(both) for both in zip(self.tokens or [0] * len(spent), spent, strict=True)]
        return [made[place] for place in range(len(batches))]

    def _file(self, rank: int) -> Path | None:
        return None if self.kept is None else _file(self.kept, rank)


_led: list[Ranks] = []
"""The ranks that serve this process now."""


@contextmanager
def leading(ranks: Ranks, kept: Path | None = None) -> Iterator[Workers]:
    """The first rank's workers, who are let go at its end; a stage within another one has the same ranks."""
    within = bool(_led)
    _led.append(ranks)
    try:
        yield Workers(ranks, kept)
    finally:
        _led.pop()
    # not after an error: then this process ends, and its launcher ends the others
    if ranks.world_size > 1 and not within:
        ranks.share([_Share()] * ranks.world_size)


def serve(ranks: Ranks, context: Context, kept: Path | None = None) -> None:
    """What every rank but the first does: makes the batches it is given until the first one is done."""
    file, generator, loaded = None if kept is None else _file(kept, ranks.rank), None, None
    nothing: list[_Share] | None = None
    while (share := ranks.share(nothing)).model is not None:
        if generator is None or share.model != loaded:
            generator = None  # before the next one arrives, so that two are never held
            generator, loaded = Served(context, *share.model).loaded(), share.model
        if share.batches is not None:
            ranks.gather(_make(share.batches, generator.generate, file))


def _make(batches: Sequence[Batch], work: Work, file: Path | None) -> list[list[NewIds]]:
    made = []
    for batch in batches:
        made.append(work(batch))
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("ab") as stream:
                append_line(stream, {"batch": _digest(batch), "ids": made[-1]})
    return made


def _tokens(batch: Batch, made: Sequence[NewIds]) -> int:
    return sum(map(len, batch.prompts)) + sum(map(len, made))


# Batches that were made before an interruption. A line that was cut off, or is of another form, is made again.


def _file(folder: Path, rank: int) -> Path:
    return folder / f"batches-{rank}.jsonl"


def _digest(batch: Batch) -> str:
    drawn = list(map(astuple, batch.samplings))
    return json_digest([[list(ids) for ids in batch.prompts], batch.limits, batch.until, drawn])


def _kept(folder: Path | None, batches: Sequence[Batch]) -> dict[int, list[NewIds]]:
    """Place to the new ids, of the batches that any rank of this machine has made before."""
    files = [] if folder is None else sorted(folder.glob("batches-*.jsonl"))
    if not files:
        return {}
    places = {_digest(batch): place for place, batch in enumerate(batches)}
    made: dict[int, list[NewIds]] = {}
    for line in (line for file in files for line in file.read_bytes().splitlines()):
        with suppress(ValueError, TypeError, KeyError):
            record = json.loads(line)
            if (place := places.get(record["batch"])) is not None and len(record["ids"]) == len(batches[place].prompts):
                made[place] = [tuple(map(int, ids)) for ids in record["ids"]]
    return made
