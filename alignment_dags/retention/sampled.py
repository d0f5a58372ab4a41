"""Text that models sampled from prompts: what was made of a withdrawn prompt goes with it.

A prompt is known by the id of its content. Whoever withdraws it, or a row that has it as its prompt, withdraws every
pair that was made of answers to it: candidates and pairs are made again without the prompt, and the shards' rows are
withdrawn by their own ids.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from alignment.data.rows import ROWS_FILE, content_id, decode
from alignment.data.validate import QUARANTINE_FILE
from alignment.data.withdrawal import Holder, rows_held
from alignment.errors import MissingArtifact
from alignment.generation.prompts import parsed
from alignment.stages.candidates import CANDIDATES_FILE, CandidatesSummary
from alignment.stages.policy import ON_POLICY_FILE
from alignment.stages.preference_shard import PAIRS_FILE
from alignment.stages.stage import POLICY
from alignment.store import Artifact, Commit, Store
from alignment.store.store import refs_of

CANDIDATES, RANKED, SHARD = "candidates", "ranked_pairs", "preference_shard"
SAMPLING_NODES = ("candidates", "weak_candidates", "answers")
GENERATED_NODE = "generated_shard"


@dataclass(frozen=True)
class PromptHolder(Holder):
    """A kind of artifact that holds prompts with what was sampled from them. One that only names others holds none."""

    def held(self, store: Store, artifact: Artifact, rows: frozenset[str]) -> set[str]:
        """Those of the prompts' ids that stand in an artifact of this kind."""
        there = store.commit_of(artifact).files
        held = rows_held(store, artifact, rows, tuple(name for name in self.files if name in there))
        return held | (set(self._quarantined(store, artifact, rows)) if QUARANTINE_FILE in there else set())


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


@dataclass
class Sampled:
    """What was made of some prompts: `prompts` that answers were sampled to, and by prompt the ids of the pairs."""

    prompts: set[str] = field(default_factory=set)
    pairs: dict[str, set[str]] = field(default_factory=dict)

    @property
    def ids(self) -> set[str]:
        """The ids of all prompts and pairs."""
        return self.prompts.union(*self.pairs.values())


def sampled_from(store: Store, asked: frozenset[str]) -> Sampled:
    """What was sampled from the prompts of these ids, and from the prompts of the rows of these ids."""
    found = Sampled()
    wanted = set(asked)
    shards = list(store.commits(SHARD))
    for commit in shards:
        wanted.update(_prompts_of(store, commit, asked))
    for holder in (PROMPTS, TRAINED_ON):
        for commit in store.commits(holder.kind):
            found.prompts |= holder.held(store, commit.artifact, frozenset(wanted))
    for commit in shards if found.prompts else ():
        if "generated" in commit.inputs:
            for row_id, prompt in _rows(store, commit):
                if prompt in found.prompts:
                    found.pairs.setdefault(prompt, set()).add(row_id)
    return found


def _prompts_of(store: Store, commit: Commit, rows: frozenset[str]) -> set[str]:
    """Ids of the prompts of those rows that a shard has."""
    if not rows_held(store, commit.artifact, rows):
        return set()
    return {prompt for row_id, prompt in _rows(store, commit) if row_id in rows}


def _rows(store: Store, commit: Commit) -> Iterator[tuple[str, str]]:
    """Row id and prompt id of each row of a shard."""
    table = pq.read_table(pa.BufferReader(store.read(commit.artifact, ROWS_FILE)), columns=["row_id", "form", "prompt"])
    for row_id, form, prompt in zip(*(table[name].to_pylist() for name in table.column_names), strict=True):
        yield row_id, content_id({"prompt": decode(form, prompt)})
