"""Text that models sampled from prompts: what was made of a withdrawn prompt goes with it.

A prompt is known by the id of its content. Whoever withdraws it, or a row or a shard that has it, withdraws every
pair that was made of answers to it: candidates and pairs are made again without the prompt, and the shards' rows are
withdrawn by their own ids.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from alignment.data.rows import BATCH_ROWS, HELD_OUT_FILE, ROWS_FILE, TRAIN_FILE, content_id, decode
from alignment.data.validate import QUARANTINE_FILE
from alignment.data.withdrawal import Holder, cause, rows_held
from alignment.errors import MissingArtifact
from alignment.generation.prompts import parsed
from alignment.stages.candidates import CANDIDATES_FILE, CandidatesSummary
from alignment.stages.policy import ON_POLICY_FILE
from alignment.stages.preference_shard import PAIRS_FILE
from alignment.stages.stage import POLICY
from alignment.store import Artifact, Commit, Store
from alignment.store.store import refs_of

CANDIDATES, RANKED, SHARD, DATASET = "candidates", "ranked_pairs", "preference_shard", "sft_dataset"
ROW_FILES = {SHARD: (ROWS_FILE,), DATASET: (TRAIN_FILE, HELD_OUT_FILE)}
SAMPLING_NODES = ("candidates", "weak_candidates", "answers")
GENERATED_NODE = "generated_shard"


@dataclass(frozen=True)
class PromptHolder(Holder):
    """A kind of artifact that holds prompts with what was sampled from them. One that only names others holds none."""

    def held(self, store: Store, artifact: Artifact, rows: frozenset[str]) -> set[str]:
        """Those of the prompts' ids that stand in an artifact of this kind."""
        there = store.commit_of(artifact).files
        held = rows_held(store, artifact, rows, tuple(name for name in self.files if name in there))
        return held | (self._quarantined(store, artifact, rows) if QUARANTINE_FILE in there else set())


PROMPTS = PromptHolder(CANDIDATES, (CANDIDATES_FILE,), parsed)  # type: ignore[arg-type]
PAIRS = PromptHolder(RANKED, (PAIRS_FILE,), parsed)  # type: ignore[arg-type]
TRAINED_ON = PromptHolder(POLICY, (ON_POLICY_FILE,), parsed)  # type: ignore[arg-type]
"""Policies that were trained on answers to prompts; they hold the ids alone."""


def current_sampled(store: Store, kind: str) -> dict[str, list[tuple[str, str | None]]]:
    """Key of every artifact of sampled text that a recipe uses now, to its (recipe, None) pairs."""
    users: dict[str, list[tuple[str, str | None]]] = {}
    for node in SAMPLING_NODES:
        for named in refs_of(store, node, kind=CANDIDATES):
            try:
                parts = CandidatesSummary.of(store.commit_of(named.ref.artifact)).parts
            except MissingArtifact:
                continue
            for artifact in (named.ref.artifact, *parts):
                users.setdefault(artifact.key, []).append((named.recipe, None))
    if kind == CANDIDATES:
        return users
    ranked: dict[str, list[tuple[str, str | None]]] = {}
    for commit in store.commits(RANKED):  # one of a single source has no ref of its own
        inputs = [artifact.key for artifact in commit.inputs.values() if artifact.kind == CANDIDATES]
        if inputs and all(key in users for key in inputs):
            ranked[commit.key] = users[inputs[0]]
    return ranked


def current_generated(store: Store) -> Iterator[tuple[str, str]]:
    """Key of every shard of generated pairs that a recipe uses now, and the recipe's name."""
    for named in refs_of(store, GENERATED_NODE, kind=SHARD):
        yield named.ref.artifact.key, named.recipe


NOTHING: Mapping[str, Collection[str]] = MappingProxyType({})


@dataclass
class Sampled:
    """What was made of some prompts: `prompts` that answers were sampled to, each with the withdrawals that take it
    along (`cause`), and by prompt the ids of the pairs."""

    prompts: dict[str, set[str]] = field(default_factory=dict)
    pairs: dict[str, set[str]] = field(default_factory=dict)

    @property
    def causes(self) -> dict[str, set[str]]:
        """The ids of all prompts and pairs, each with the withdrawals that take it along."""
        found = {prompt: set(causes) for prompt, causes in self.prompts.items()}
        for prompt, pairs in self.pairs.items():
            for pair in pairs:
                found.setdefault(pair, set()).update(self.prompts[prompt])
        return found


def sampled_from(store: Store, asked: frozenset[str], whole: Mapping[str, Collection[str]] = NOTHING) -> Sampled:
    """What was sampled from the prompts of these ids, and from the prompts of the rows of these ids, be they preference
    rows or rows to fine-tune on. `whole` maps keys of shard artifacts to the shards' names: all their rows count.

    Holds the ids of the prompts that were ever sampled to, and of a shard a batch at a time.
    """
    found = Sampled()
    known = set(_ever_sampled(store))
    if not known:
        return found
    for prompt in asked & known:
        found.prompts.setdefault(prompt, set()).add(prompt)
    shards = list(store.commits(SHARD))
    for commit in (*shards, *store.commits(DATASET)):
        files = ROW_FILES[commit.kind]
        if shards_of_it := {cause("shards", shard) for shard in whole.get(commit.key, ())}:
            for _, prompt in _rows(store, commit, files):
                if prompt in known:
                    found.prompts.setdefault(prompt, set()).update(shards_of_it)
        if rows := rows_held(store, commit.artifact, asked, files):
            for row_id, prompt in _rows(store, commit, files, rows):
                if prompt in known:
                    found.prompts.setdefault(prompt, set()).add(row_id)
    for commit in shards if found.prompts else ():
        if "generated" in commit.inputs:
            for row_id, prompt in _rows(store, commit, ROW_FILES[SHARD]):
                if prompt in found.prompts:
                    found.pairs.setdefault(prompt, set()).add(row_id)
    return found


def _ever_sampled(store: Store) -> Iterator[str]:
    """Ids of all prompts that artifacts of sampled text hold."""
    for holder in (PROMPTS, TRAINED_ON):
        for commit in store.commits(holder.kind):
            for name in (name for name in holder.files if name in commit.files):
                with store.open(commit.artifact, name) as stream:
                    yield from pq.read_table(stream, columns=["row_id"])["row_id"].unique().to_pylist()
            if QUARANTINE_FILE in commit.files:
                yield from holder.set_aside(store, commit.artifact)


def _rows(
    store: Store, commit: Commit, files: tuple[str, ...], only: set[str] | None = None
) -> Iterator[tuple[str, str]]:
    """Row id and prompt id of each row in files of an artifact, or of those rows only."""
    wanted = None if only is None else pa.array(sorted(only), pa.string())
    for name in files:
        with store.open(commit.artifact, name) as stream, pq.ParquetFile(stream) as file:
            for batch in file.iter_batches(BATCH_ROWS, columns=["row_id", "form", "prompt"]):
                chosen = batch if wanted is None else batch.filter(pc.is_in(batch["row_id"], value_set=wanted))
                for row in chosen.to_pylist():
                    yield row["row_id"], content_id({"prompt": decode(row["form"], row["prompt"])})
