"""`align prefs stats` and `align prefs noise`: numbers of the preference data in files or behind a recipe."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from alignment.data.assign import ShardFiles, assign
from alignment.data.files import expand
from alignment.data.manifest import by_source, read_manifest
from alignment.data.measure import (
    LOGPS,
    Contradictions,
    LogpCounts,
    length_gaps,
    margins,
    measured_columns,
    pair_numbers,
)
from alignment.data.noise import MOST_PAIRS, estimate, estimates
from alignment.data.overlap import ItemRuns, overlap, overlap_numbers
from alignment.data.readers import Record, read_records
from alignment.data.rows import CHOSEN_LENGTH, PAIR_ID, REJECTED_LENGTH, ROWS_FILE, read_columns, write_rows
from alignment.data.shards import shard_names
from alignment.data.statistics import LogpNumbers, NearNumbers, NoiseNumbers, PairNumbers, findings
from alignment.data.validate import Validation, most_common
from alignment.data.words import near_duplicates
from alignment.errors import BadInput, counted
from alignment.recipe import Recipe, load_recipe
from alignment.stages.preference_shard import records_of, validation_of
from alignment.store import Store
from assets.building.upstream import Upstream
from assets.preference_manifest import evaluation_items
from resources.store import ArtifactStore

RECIPES = (".yaml", ".yml")
SIMILAR = 0.9
NAMED = 20
"""Rows that are named of each kind, at most."""
MANIFEST = "preference_manifest"


@dataclass(frozen=True)
class Data:
    """Rows to be measured, as shards; and the recipe they belong to, if it was a recipe that was named."""

    shards: list[ShardFiles]
    recipe: Recipe | None
    source: str

    @property
    def sources(self) -> list[str]:
        """The names of the recipe's sources; none without a recipe, and where it has one without a name."""
        return [] if self.recipe is None else [source.name for source in self.recipe.preferences.sources]


@contextmanager
def data_of(named: list[str]) -> Iterator[Data]:
    """The rows of files, or of a recipe: those of its training set, or what its source holds if there is none yet.

    Raises `BadInput` for what cannot be read, for files without a valid row, and for a recipe among several arguments.
    """
    is_recipe = [name for name in named if name.endswith(RECIPES)]
    if is_recipe and len(named) > 1:
        raise BadInput("give either one recipe or preference files", file=is_recipe[0])
    with tempfile.TemporaryDirectory() as scratch:
        if not is_recipe:
            yield Data(_from_files(named, Path(scratch)), None, ", ".join(named))
            return
        recipe = load_recipe(Path(is_recipe[0]))
        store = ArtifactStore().open()
        ref = store.read_ref(recipe.name, MANIFEST)
        if ref is not None:
            folder = store.fetch(ref.artifact)
            shards = [
                ShardFiles(
                    shard.name,
                    shard.rows,
                    store.fetch(shard.shard),
                    None if shard.reference is None else store.fetch(shard.reference),
                )
                for shard in read_manifest(folder).shards
            ]
            yield Data(shards, recipe, f"the training set of {recipe.name}")
        else:
            yield Data(_from_source(recipe, store, Path(scratch)), recipe, f"the source of {recipe.name}")


def _from_files(named: list[str], scratch: Path) -> list[ShardFiles]:
    urls = [url for name in named for url in expand(name)]
    parts = ((name, Validation(), read_records(url), url) for name, url in zip(shard_names(urls), urls, strict=True))
    return _written(parts, scratch, ", ".join(named))


def _from_source(recipe: Recipe, store: Store, scratch: Path) -> list[ShardFiles]:
    requests = Upstream(store, recipe.name).shards(recipe)
    parts = ((name, validation_of(request), records_of(request), request.source) for name, request in requests.items())
    return _written(parts, scratch, recipe.name)


def _written(
    parts: Iterable[tuple[str, Validation, Iterable[Record], str]], scratch: Path, what: str
) -> list[ShardFiles]:
    shards, reasons = [], Counter[str]()
    for number, (name, validation, records, source) in enumerate(parts):
        folder = scratch / str(number)
        folder.mkdir()
        if rows := write_rows(folder / ROWS_FILE, validation.accepted(records, source)):
            shards.append(ShardFiles(name, rows, folder, None))
        reasons.update(validation.reasons)
    if not shards:
        raise BadInput(f"no valid preference row; {most_common(reasons)}", file=what)
    return shards


# Everything that can be measured.


def statistics(named: list[str], picture: Path | None = None) -> dict[str, Any]:
    """All numbers and findings as plain data; writes a picture of the distributions if it is asked for."""
    with data_of(named) as data:
        return measure(data, {} if data.recipe is None else evaluation_items(data.recipe), picture)


def measure(data: Data, items: Mapping[str, Mapping[str, list[str]]], picture: Path | None = None) -> dict[str, Any]:
    """The numbers of some rows, and the overlap with `items`, given as `ItemRuns` takes them.

    `rows` counts each row once. `contradictory_rows` and `near_duplicate_rows` name the first few such rows.
    """
    shards, sizes = data.shards, [shard.rows for shard in data.shards]
    with tempfile.TemporaryDirectory() as work:
        contradictions = Contradictions(Path(work, "pair_ids"), sum(sizes))
        near = near_duplicates([shard.folder for shard in shards], sizes, SIMILAR, Path(work, "near"))
        first = 0
        for places in assign(shards, 0.0, Path(work), pair_ids=True):
            mine, kept = slice(first, first + len(places)), pc.is_null(places["reason"])
            contradictions.add(places[PAIR_ID].filter(kept).to_numpy())
            near[mine] &= kept.to_numpy()  # what another shard has is counted as that alone
            first = mine.stop
        contradictory = contradictions.count()
        repeated = NearNumbers(rows=contradictions.rows, near_duplicates=int(near.sum()), similarity=SIMILAR)
        repeated_rows = _rows_named(shards, _pieces(near, sizes))
        del near
    parts, logps, drawn = [], {}, Distributions()
    for shard in shards:
        table = measured_columns(shard.folder)
        parts.append(pair_numbers(table))
        drawn.add(table)
        if shard.reference is not None:
            counts = LogpCounts()
            counts.add(read_columns(shard.reference / "logprobs.parquet", *LOGPS))
            if (known := counts.numbers()) is not None:
                logps[shard.name] = known
    known_parts = [part for part in parts if part is not None]
    pairs = PairNumbers.together(known_parts) if known_parts else None
    named = zip((shard.name for shard in shards), parts, strict=True)
    by_name = by_source(((name, part) for name, part in named if part is not None), data.sources)
    pairs_of = {source: PairNumbers.together(own) for source, own in by_name.items()}
    reference = LogpNumbers.together(logps) if logps else None
    overlaps = None
    if items:
        asked = ItemRuns(items)
        overlaps = overlap_numbers(asked, (overlap(shard.folder, asked) for shard in shards))
    if picture is not None:
        from eval.report.preference_data import distributions_png

        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.write_bytes(distributions_png(drawn.ratios, drawn.margins, reference))
    examples = pa.array(contradictions.examples, pa.uint64())
    turned = (pc.is_in(measured_columns(shard.folder, PAIR_ID)[PAIR_ID], examples) for shard in shards)
    found = findings(pairs, (contradictory, contradictions.rows), reference, repeated, overlaps, pairs_of=pairs_of)
    return {
        "source": data.source,
        "shards": len(shards),
        "rows": contradictions.rows,
        "pairs": None if pairs is None else pairs.model_dump(mode="json"),
        "contradictory": contradictory,
        "contradictory_rows": _rows_named(shards, turned) if contradictory else [],
        "near_duplicates": repeated.model_dump(mode="json"),
        "near_duplicate_rows": repeated_rows,
        "reference_logps": None if reference is None else reference.model_dump(mode="json", exclude={"counts"}),
        "overlap": None if overlaps is None else overlaps.model_dump(mode="json"),
        "picture": None if picture is None else str(picture),
        "findings": [asdict(finding) for finding in found],
    }


def _pieces(near: npt.NDArray[np.uint8], sizes: list[int]) -> Iterator[pa.Array]:
    ends = np.cumsum([0, *sizes])
    return (pa.array(near[start:end].astype(bool)) for start, end in pairwise(ends))


def noise(named: list[str], most: int = MOST_PAIRS) -> dict[str, Any]:
    """The estimate of flipped labels and its findings as plain data; where the recipe names several sources, that of
    each as `sources`, and what they come to for all pairs."""
    with data_of(named) as data:
        by_name = estimates(data.shards, data.sources, most)
        numbers = NoiseNumbers.together(list(by_name.values())) if by_name else estimate(data.shards, most)
        if not numbers.pairs and not numbers.swapped:
            raise BadInput("no pairs: label noise is estimated from a chosen and a rejected answer", file=named[0])
        found = findings(noise=numbers, noise_of=by_name)
        each = {source: own.model_dump(mode="json") for source, own in by_name.items()}
        return {
            "source": data.source,
            **numbers.model_dump(mode="json"),
            **({"sources": each} if each else {}),
            "findings": [asdict(finding) for finding in found],
        }


def _rows_named(shards: list[ShardFiles], which: Iterable[pa.Array]) -> list[dict[str, Any]]:
    named: list[dict[str, Any]] = []
    for shard, wanted in zip(shards, which, strict=True):
        if len(named) < NAMED and pc.any(wanted).as_py():
            rows = read_columns(shard.folder / ROWS_FILE, "row_id", "source", "source_row").filter(wanted)
            named += [{"shard": shard.name, **row} for row in rows.slice(0, NAMED - len(named)).to_pylist()]
    return named


class Distributions:
    """Counts for the picture, in bins: how much longer the chosen answer is, and the scores' margin by that."""

    RATIOS = np.linspace(-3.0, 3.0, 49)
    """Ends of the bins of log2(chosen length / rejected length)."""

    def __init__(self) -> None:
        self.ratios = np.zeros(len(self.RATIOS) - 1, np.int64)
        self._sums = np.zeros(len(self.ratios))
        self._scored = np.zeros(len(self.ratios), np.int64)

    def add(self, table: pa.Table) -> None:
        """Adds the pairs of some rows, given with the columns of `MEASURED` they have."""
        paired = pc.is_valid(length_gaps(table)).to_numpy(zero_copy_only=False)
        chosen, rejected = (table[name].filter(paired).to_numpy() for name in (CHOSEN_LENGTH, REJECTED_LENGTH))
        ratio = np.clip(np.log2((chosen + 1) / (rejected + 1)), -2.999, 2.999)
        places = np.searchsorted(self.RATIOS, ratio, side="right") - 1
        self.ratios += np.bincount(places, minlength=len(self.ratios))
        margin = margins(table)[paired]
        scored = np.isfinite(margin)
        self._sums += np.bincount(places[scored], margin[scored], minlength=len(self.ratios))
        self._scored += np.bincount(places[scored], minlength=len(self.ratios))

    @property
    def margins(self) -> list[float | None]:
        """The mean margin of the scores in each bin of lengths; None where there is none."""
        return [float(total / count) if count else None for total, count in zip(self._sums, self._scored, strict=True)]


# What a person reads.


def show_statistics(result: dict[str, Any]) -> None:
    """Prints the outcome of `align prefs stats`."""
    print(f"{result['source']}: {counted(result['rows'], 'row')} in {counted(result['shards'], 'shard')}")
    show_findings(result)
    for kind, title in (("contradictory_rows", "contradict each other"), ("near_duplicate_rows", "near-duplicates")):
        if rows := result[kind]:
            print(f"{title} (the first {len(rows)}):")
            for row in rows:
                print(f"  {row['row_id']}  {row['shard']}: {row['source']}, row {row['source_row']}")
    if result["picture"]:
        print(f"picture: {result['picture']}")


def show_noise(result: dict[str, Any]) -> None:
    """Prints the outcome of `align prefs noise`."""
    print(
        f"{result['source']}: {counted(result['pairs'], 'pair')}, {result['agreement']:.0%} ordered as the others say"
    )
    show_findings(result)


def show_findings(result: dict[str, Any]) -> None:
    """Prints a line for each finding, what does not pass first."""
    for finding in sorted(result["findings"], key=lambda finding: finding["passed"]):
        mark = "ok  " if finding["passed"] else "LOOK"
        print(f"  {mark}  {finding['name'].replace('_', ' ')}: {finding['sentence']}")
