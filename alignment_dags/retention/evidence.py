"""`align prefs evidence`: whether a model that was trained without withdrawn rows behaves as if it had seen them.

A model that was trained on a pair prefers its chosen side by more than that of a pair which it never saw. So the
margins of the withdrawn rows under the new policy are compared with those of matched held-out pairs of the same source,
which it never saw either; and, where the policy before is still there, with what they were under it.

It is measured between the retraining and `align gc`, while the text is still there to be read. What is kept are means
and intervals: no text, no token ids, no row ids, and no number of a single row unless only one can be compared. It is
then not said which it was. Nothing goes through a cache, and on a remote store the text is read in memory and never
copied.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from alignment.data.manifest import SPLIT_FILE, sources_of
from alignment.data.rows import ROWS_FILE, SPLIT_AT, PreferenceRow, row_of, split_at
from alignment.data.withdrawal import read_withdrawn, tombstone
from alignment.errors import BadInput, MissingArtifact, counted
from alignment.models.quantised import Quantisation
from alignment.recipe import Recipe, load_recipe
from alignment.stages.execute import REQUEST_FILE
from alignment.stages.policy import ROWS_FILE as TRAINED_FILE
from alignment.stages.policy import DpoRequest
from alignment.stages.stage import POLICY, CheckpointSummary, starts_of, trained_policy, trainings_of
from alignment.store import Artifact, Commit, Store
from alignment.store.store import readable_commits
from alignment.training.held_out_pairs import HeldOutPair
from alignment_dags.retention.text import SHARD
from alignment_dags.retention.trace import Measured, Trace, trace
from eval.gate.held_out import read_held_out
from eval.gate.metrics import Unit
from resources.home import ensure_home
from resources.store import ArtifactStore

FOLDER = "evidence"
NATS = Unit(1.0, 3, "nats", "")
REPORT, REGISTERED = "evaluation_report", "registered_model"


class Evidence(BaseModel):
    """`after` is under the new policy, which never saw the rows, `before` under the policy that was trained on them;
    None if its weights were erased or none of its rows can be compared. `siblings` withdrawn rows more are left out:
    the new policy was trained on other pairs of their prompts, which leave a trace of their own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: str
    policy: str
    policy_before: str
    at: str
    after: Trace
    before: Trace | None = None
    siblings: int = 0

    def told(self) -> str:
        """In one line."""
        then = "" if self.before is None else f"; under the policy before {_told(self.before)}"
        if self.siblings:
            then += f"; {self.siblings} more are left out, as other pairs of their prompts are trained on"
        rows = counted(self.after.rows, "withdrawn row")
        return (
            f"{rows}, on {self.at[:10]}: margin {_nats(self.after.margin)} nats, and"
            f" {_nats(self.after.matched_margin)} of matched pairs that it never saw: {_told(self.after)}{then}"
        )


def _nats(value: float) -> str:
    return NATS.format(value, "+")


def _told(trace: Trace) -> str:
    interval = "too few for an interval"
    if trace.low is not None and trace.high is not None:
        interval = f"95 % interval {_nats(trace.low)} to {_nats(trace.high)}"
    left_out = []
    if trace.unmatched:
        left_out.append(f"{trace.unmatched} that no held-out pair is like")
    if trace.dropped:
        left_out.append(f"{trace.dropped} that the recipe's token policy drops")
    without = f", without {' and '.join(left_out)}" if left_out else ""
    return f"difference {_nats(trace.difference)} ({interval}), rank {trace.rank:.2f}{without}"


# The rows, and what the policies make of them.


def measure_evidence(path: Path) -> dict[str, Any]:
    """Measures the withdrawn rows of a recipe under its current policy and keeps the evidence with it.

    Raises `BadInput` where nothing was withdrawn, where the current policy was still trained on the rows, where no
    policy ever was, where their text is erased already, and where no row can be compared: the token policy drops them
    all, or no held-out pair is like them.
    """
    ensure_home()
    recipe, store = load_recipe(path), ArtifactStore().open()
    if recipe.method.data != "paired":
        raise BadInput("has labelled completions, and evidence compares margins of pairs", file=str(path))
    withdrawn, rows = read_withdrawn(store, recipe.name), _withdrawn_rows(store, recipe.name)
    nothing = "no withdrawn row is there to be read: none was withdrawn, or `align gc` has erased the text"
    if not withdrawn.rows and not withdrawn.shards:
        raise BadInput(nothing)
    ref = store.read_ref(recipe.name, POLICY)
    if ref is None:
        raise BadInput(f"recipe {recipe.name} has no policy yet", file=str(path))
    policy = store.commit_of(ref.artifact)
    first = "`align run` first"
    if still := _trained_on(store, policy, set(rows) | withdrawn.rows):
        raise BadInput(f"the current policy was trained on {len(still)} of the rows: {first}", file=str(path))
    if _shards(store, policy).keys() & _withdrawn_shards(store, recipe.name):
        raise BadInput(f"the current policy was trained on a withdrawn shard: {first}", file=str(path))
    if not rows:
        raise BadInput(nothing)
    before, known = _policy_before(store, recipe.name, policy, set(rows))
    trained = _prompts_trained_on(store, policy)
    chosen = [rows[row_id] for row_id in sorted(known) if _place(rows[row_id]) not in trained]
    if not chosen:
        why = f"other pairs of the prompts of all {len(known)} withdrawn rows are trained on, and leave a trace"
        raise BadInput(f"{why}: of the rows themselves nothing can be said", file=str(path))
    sources = _sources(store, recipe, before, known)
    evidence = Evidence(
        recipe=recipe.name,
        policy=policy.digest,
        policy_before=before.digest,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        after=_trace_under(store, recipe, policy, chosen, sources),
        before=_trace_or_none(store, recipe, before, chosen, sources),
        siblings=len(known) - len(chosen),
    )
    store.replace(_path(store, policy.digest), evidence.model_dump_json(indent=1).encode())
    return about(evidence)


def evidence_of(store: Store, policy: str) -> dict[str, Any] | None:
    """The evidence that is kept with a policy, by its digest; None without."""
    try:
        return about(Evidence.model_validate_json(store.fs.cat_file(_path(store, policy))))
    except FileNotFoundError:
        return None


def about(evidence: Evidence) -> dict[str, Any]:
    """The evidence as plain data, with its sentence."""
    return evidence.model_dump(mode="json") | {"told": evidence.told()}


def _path(store: Store, policy: str) -> str:
    return store.path(FOLDER, f"{policy}.json")


def _withdrawn_rows(store: Store, recipe: str) -> dict[str, PreferenceRow]:
    """The withdrawn pairs whose text some artifact still has, by id; of withdrawn shards every pair."""
    withdrawn, whole = read_withdrawn(store, recipe), _withdrawn_shards(store, recipe)
    ids, rows = pa.array(sorted(withdrawn.rows), pa.string()), dict[str, PreferenceRow]()
    for commit in store.commits(SHARD):
        table = pq.read_table(io.BytesIO(store.read(commit.artifact, ROWS_FILE)))
        if commit.key not in whole:
            table = table.filter(pc.is_in(table["row_id"], value_set=ids))
        rows |= {row.row_id: row for row in map(row_of, table.to_pylist()) if row.paired}
    return rows


def _withdrawn_shards(store: Store, recipe: str) -> set[str]:
    """Keys of the artifacts of withdrawn shards."""
    stones = (tombstone(store, recipe, "shards", shard) for shard in read_withdrawn(store, recipe).shards)
    return {key for stone in stones if stone is not None for key in stone.artifacts}


def _shards(store: Store, policy: Commit) -> dict[str, Artifact]:
    """By key, the shards that a policy was trained on, and the policies that its weights came from."""
    manifests = (store.commit_of(trained.inputs["manifest"]) for trained in trainings_of(store.commit_of, policy))
    pinned = (one for manifest in manifests for name, one in manifest.inputs.items() if name.startswith("shards."))
    return {shard.key: shard for shard in pinned}


def _prompts_trained_on(store: Store, policy: Commit) -> set[float]:
    """Where the prompts stand that a policy was trained on pairs of (`split_at`)."""
    trainings = trainings_of(store.commit_of, policy)
    train = pa.array({row for trained in trainings for row in _train_rows(store, trained)}, pa.string())
    found: set[float] = set()
    for shard in _shards(store, policy).values():
        with suppress(MissingArtifact):
            file = pq.ParquetFile(io.BytesIO(store.read(shard, ROWS_FILE)))
            place = [SPLIT_AT] if SPLIT_AT in file.schema_arrow.names else ["form", "prompt"]
            table = file.read(["row_id", *place])
            rows = table.filter(pc.is_in(table["row_id"], value_set=train)).to_pylist()
            found |= {row[SPLIT_AT] if SPLIT_AT in row else split_at(row["prompt"], row["form"]) for row in rows}
    return found


def _place(row: PreferenceRow) -> float:
    return split_at(row.prompt, row.form)


def _trained_on(store: Store, policy: Commit, rows: set[str]) -> set[str]:
    """Those of the rows that a policy was trained on, or another that its weights came from."""
    trainings = trainings_of(store.commit_of, policy)
    return {row for trained in trainings for row in _train_rows(store, trained) if row in rows}


def _train_rows(store: Store, policy: Commit) -> Iterator[str]:
    with store.open(policy.artifact, TRAINED_FILE) as stream:
        table = pq.read_table(stream, columns=["row_id", "split"])
    yield from table["row_id"].filter(pc.equal(table["split"], "train")).to_pylist()


def _policy_before(store: Store, recipe: str, policy: Commit, rows: set[str]) -> tuple[Commit, set[str]]:
    """The policy that this one replaced, and which of the rows it was trained on: of the recipe's policies that were
    finished before this one was begun and saw some of the rows, the latest that was evaluated, or else the latest.

    The points of a sweep, other seeds and averages that were not picked are policies too, and may be later than the one
    that was the recipe's.
    """
    evaluated = _evaluated(store, recipe)
    begun = datetime.fromisoformat(policy.started_at) + timedelta(seconds=1)  # records have whole seconds, cut off
    earlier = [
        commit
        for commit in readable_commits(store, POLICY)
        if (commit.environment.get("recipe") == recipe or commit.key in evaluated)
        and commit.digest != policy.digest
        and _finished(commit) < begun
    ]
    for commit in sorted(earlier, key=lambda one: (one.key in evaluated, _finished(one)), reverse=True):
        try:
            if known := _trained_on(store, commit, rows):
                return commit, known
        except MissingArtifact:
            continue
    raise BadInput(
        f"no policy of {recipe} that was finished before the current one was begun ({policy.started_at[:19]} UTC) was"
        " trained on a withdrawn row, so none can have left a trace"
    )


def _finished(commit: Commit) -> datetime:
    return datetime.fromisoformat(commit.started_at) + timedelta(seconds=commit.seconds)


def _evaluated(store: Store, recipe: str) -> set[str]:
    """Keys of the policies that were the recipe's: those that its reports are of, and those that it registered, also
    where another recipe with the same settings had made them."""
    reports = (one for one in readable_commits(store, REPORT) if one.environment.get("recipe") == recipe)
    keys = {report.inputs["policy"].key for report in reports}
    ref = store.read_ref(recipe, REGISTERED)
    latest = None if ref is None else ref.artifact
    while latest is not None:
        registration = store.commit_of(latest)
        keys.add(registration.inputs["policy"].key)
        latest = registration.inputs.get("previous")
    return keys


def _sources(store: Store, recipe: Recipe, policy: Commit, rows: Collection[str]) -> dict[str, str]:
    """Which of a recipe's sources each of the rows is of, by the manifests of a policy; a manifest may be gone. A
    source that has another name since is told by its shards."""
    names = [source.name for source in recipe.preferences.sources]
    now = {ref.artifact.digest: shard for shard, ref in store.read_refs(recipe.name, SHARD).items()} if names else {}
    found: dict[str, str] = {}
    for trained in trainings_of(store.commit_of, policy):
        manifest = trained.inputs["manifest"]
        with suppress(MissingArtifact), store.open(manifest, SPLIT_FILE) as split:
            pinned = store.commit_of(manifest).inputs.items()
            shards = {name.removeprefix("shards."): one.digest for name, one in pinned if name.startswith("shards.")}
            called = {name: now[digest] for name, digest in shards.items() if digest in now}
            found |= sources_of(split, rows, names, called)
    return found


def _trace_or_none(
    store: Store, recipe: Recipe, policy: Commit, rows: list[PreferenceRow], sources: Mapping[str, str]
) -> Trace | None:
    try:
        return _trace_under(store, recipe, policy, rows, sources)
    except (MissingArtifact, BadInput):  # its weights were erased, or nothing is to be matched with
        return None


def _trace_under(
    store: Store, recipe: Recipe, policy: Commit, rows: list[PreferenceRow], sources: Mapping[str, str]
) -> Trace:
    """`sources` has those of the rows."""
    held_out = read_held_out(store, policy.artifact)
    pairs = [pair for pair in held_out.pairs if isinstance(pair, HeldOutPair)] if held_out else []
    if not pairs:
        raise BadInput("the policy has no held-out pair that it never saw: give the recipe a held_out_fraction")
    of_unseen = _sources(store, recipe, policy, [pair.row_id for pair in pairs])
    unseen = [
        Measured(
            margin=pair.chosen_ratio - pair.rejected_ratio,
            ref_margin=pair.ref_chosen_logp - pair.ref_rejected_logp,
            tokens=pair.chosen_tokens + pair.rejected_tokens,
            source=of_unseen.get(pair.row_id, ""),
            prompt=pair.prompt_id,
        )
        for pair in pairs
    ]
    measured = _measure(store, recipe, policy, rows, sources)
    return trace(measured, unseen).model_copy(update={"dropped": len(rows) - len(measured)})


def bits_of_start(store: Store, policy: Commit, start: Commit) -> Quantisation | None:
    """How the start was kept when it was scored for the policy's held-out pairs, which withdrawn rows are matched with:
    as its training's reference it was, else whole."""
    trained = trained_policy(store.commit_of, policy)
    request = DpoRequest.model_validate_json(store.read(trained.artifact, REQUEST_FILE))
    reference = request.reference or request.checkpoint
    scored = request.settings.method.needs_reference and reference.digest == start.digest
    return request.settings.quantise if scored else None


def _measure(
    store: Store, recipe: Recipe, policy: Commit, rows: list[PreferenceRow], sources: Mapping[str, str]
) -> list[Measured]:
    """The rows under a policy and under where its training started, whole models one after the other.

    What the recipe's token policy drops is left out. It may be stricter than when the rows were trained on. Raises
    `BadInput` where it drops them all.
    """
    from alignment.data.tokens import Dropped, Tokenization
    from alignment.logprobs.scorer import free_memory, logps
    from alignment.models.checkpoint import embeddings, load_model, load_tokenizer, max_positions
    from alignment.models.ends import end_ids

    start = starts_of(store.commit_of, policy)[-1]
    folder, runs_code = store.fetch(policy.artifact), CheckpointSummary.of(policy).may_run_code
    tokens = Tokenization(
        load_tokenizer(folder, runs_code), recipe.tokens, max_positions(folder), end_ids(folder), embeddings(folder)
    )
    kept = [(row, pair) for row, pair in zip(rows, tokens.pairs(rows), strict=True) if not isinstance(pair, Dropped)]
    if not kept:
        what = "the withdrawn row" if len(rows) == 1 else f"all {len(rows)} withdrawn rows"
        raise BadInput(f"the recipe's token policy drops {what}, so nothing can be compared", field="tokens")
    sequences = [side for _, pair in kept for side in pair]
    found: list[list[float]] = []
    for checkpoint, quantise in ((policy, None), (start, bits_of_start(store, policy, start))):
        free_memory()
        code = CheckpointSummary.of(checkpoint).may_run_code
        at = store.fetch(checkpoint.artifact)
        model = load_model(at, recipe.dpo.precision, runs_code=code, quantise=quantise)
        found.append(logps(model, sequences, recipe.reference.batch_tokens))
        del model
    margins = [[values[place] - values[place + 1] for place in range(0, len(values), 2)] for values in found]
    return [
        Measured(
            margin=under_policy - under_start,
            ref_margin=under_start,
            tokens=sum(side.counted for side in pair),
            source=sources.get(row.row_id, ""),
            prompt=str(_place(row)),
        )
        for (row, pair), under_policy, under_start in zip(kept, *margins, strict=True)
    ]


def show_evidence(result: dict[str, Any]) -> None:
    """Prints the evidence, and how it is to be read."""
    print(f"{result['recipe']}, policy {result['policy'][:12]}: {result['told']}")
    print("a model that saw the rows prefers their chosen sides by more than those of pairs that it never saw")
