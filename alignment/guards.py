"""Guards: named checks on what a stage made, each with its numbers and one sentence; pure, over recorded summaries.

A guard that does not hold stops nothing by itself: it is red in Dagster, in the report and in an alert. What must stop
a run is an error of the stage, and what must stop a promotion is a requirement of the gate.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

import pyarrow.parquet as pq

from alignment.data.manifest import MANIFEST_FILE, Manifest, ManifestShard, by_source
from alignment.data.measure import measured_columns, pair_numbers
from alignment.data.mixing import AGREED, BEYOND, NOT_SWEPT
from alignment.data.rows import ROWS_FILE
from alignment.data.statistics import GUARDS, IN_SUMMARY, Finding, PairNumbers
from alignment.errors import CorruptArtifact, MissingArtifact, be, counted
from alignment.methods import method_of
from alignment.recipe.forward import TokenPolicy
from alignment.recipe.training import Dpo, SftTraining, as_fast_as_sft
from alignment.stages.execute import REQUEST_FILE
from alignment.stages.stage import (
    POLICY,
    CheckpointSummary,
    ManifestSummary,
    PolicySummary,
    SftSummary,
    ShardSummary,
)
from alignment.store import Artifact, Commit, Store
from alignment.training.signs import signs

Severity = Literal["error", "warning"]
SFT_CHECKPOINT = "sft_checkpoint"
GATE = "gate"
"""The name of the guard that repeats the gate's verdict."""


@dataclass(frozen=True)
class Guard:
    """A guard's finding: what the guard is called, whether it holds, the numbers it looked at, and one sentence.

    `severity` is that of a guard that does not hold: an `error` needs an answer, a `warning` a look.
    """

    name: str
    passed: bool
    sentence: str
    numbers: Mapping[str, float] = field(default_factory=dict)
    severity: Severity = "warning"


Find = Callable[[Store, Commit, bool], list[Guard]]
"""The guards' findings on a committed artifact; the last argument says whether files may be hashed for them."""


@dataclass(frozen=True)
class Guards:
    """The guards of a stage: `about` maps each name to what holds where it passed, `find` gives one finding a name, and
    `remedies` has what to do about one that does not hold, where its sentence does not say so."""

    about: Mapping[str, str]
    find: Find
    remedies: Mapping[str, str] = field(default_factory=dict)

    def findings(self, store: Store, commit: Commit, deep: bool = True) -> list[Guard]:
        """One finding for each name, in the order of `about`."""
        found = {guard.name: guard for guard in self.find(store, commit, deep)}
        return [found.get(name) or Guard(name, True, "not measured here") for name in self.about]

    def told(self, guard: Guard, stage: str, recipe: str) -> str:
        """What a person reads of a guard that does not hold, in lines: which it is, what it saw, what it expects, and
        what to do. In a remedy RECIPE stands for the recipe's name."""
        lines = [
            f"the guard {guard.name} of {stage} is red; nothing is stopped by it",
            f"  it saw: {guard.sentence}",
            f"  it expects: {self.about[guard.name]}",
        ]
        if remedy := self.remedies.get(guard.name):
            lines.append(f"  what to do: {remedy.replace('RECIPE', recipe)}")
        return "\n".join(lines)


# The manifest: rows that were lost on the way, and what the data's own statistics say.

MOST_QUARANTINED = 0.05
MOST_DROPPED = 0.05
"""Shares of rows above which a source or a token policy is more likely wrong than its rows."""

MANIFEST_GUARDS = {
    "rows_quarantined": f"At most {MOST_QUARANTINED:.0%} of the source's rows, over all shards, are not valid.",
    "rows_dropped": f"At most {MOST_DROPPED:.0%} of the valid rows are dropped by the token policy.",
    "shards_left_out": "No shard of the source is left out of the training set.",
}


MANIFEST_REMEDIES = {
    "rows_quarantined": "`align prefs check RECIPE` names each row with its reason; correct the files, or say which"
    " columns to read with preferences.columns",
    "rows_dropped": "`align prefs show RECIPE` says which rows and why; raise tokens.max_length, or cut rows with"
    " tokens.truncation",
    "shards_left_out": "`align backfill RECIPE` makes the shards that are behind; the next run has them",
}

DATA_GUARDS = {name: GUARDS[name] for name in IN_SUMMARY}
"""Name of each finding of `data_findings` to what holds where it passed."""


def data_findings(summary: ManifestSummary, pairs_of: Mapping[str, PairNumbers] | None = None) -> Sequence[Guard]:
    """What the statistics in a manifest's summary say of the data, with those of each named source in `pairs_of`."""
    return [of_data(finding) for finding in summary.findings(pairs_of)]


def of_data(finding: Finding) -> Guard:
    """What statistics say of preference data, as a guard's finding."""
    return Guard(finding.name, finding.passed, finding.sentence, finding.numbers)


def manifest_guards(sources: Collection[str] = ()) -> Guards:
    """The guards of `preference_manifest`, the data's own among them; with the recipe's named `sources`, lengths are
    judged source by source."""

    def find(store: Store, commit: Commit, deep: bool) -> list[Guard]:
        pinned = pinned_shards(store, commit.artifact)
        shards = [ShardSummary.of(store.commit_of(shard.shard)) for shard in pinned]
        manifest = ManifestSummary.of(commit)
        pairs_of: dict[str, PairNumbers] = {}
        with suppress(MissingArtifact):  # they are judged together then
            pairs_of = pairs_by_source(store, pinned, sources)
        return [quarantined(shards), dropped(manifest), left_out(manifest), *data_findings(manifest, pairs_of)]

    return Guards({**MANIFEST_GUARDS, **DATA_GUARDS}, find, MANIFEST_REMEDIES)


def pairs_by_source(store: Store, shards: Iterable[ManifestShard], sources: Collection[str]) -> dict[str, PairNumbers]:
    """Lengths and scores of each named source's pairs in a manifest; empty where its shards are not of several. Raises
    `MissingArtifact` for a shard without numbers in its record whose files are gone."""
    groups = by_source(((shard.name, shard) for shard in shards), sources)
    numbers = {source: [_pair_numbers(store, shard) for shard in own] for source, own in groups.items()}
    known = {source: [one for one in parts if one is not None] for source, parts in numbers.items()}
    return {source: PairNumbers.together(parts) for source, parts in known.items() if parts}


def _pair_numbers(store: Store, shard: ManifestShard) -> PairNumbers | None:
    """From the shard's own summary; that of an earlier version is measured now."""
    summary = ShardSummary.of(store.commit_of(shard.shard))
    if summary.pairs is not None or summary.kind == "unpaired":
        return summary.pairs
    return pair_numbers(measured_columns(store.fetch(shard.shard)))


def pinned_shards(store: Store, manifest: Artifact) -> list[ManifestShard]:
    """The shards of a manifest; its split, which has a row for each of theirs, is not read."""
    return Manifest.model_validate_json(store.read(manifest, MANIFEST_FILE)).shards


def quarantined(shards: Iterable[ShardSummary]) -> Guard:
    """Rows of the source that are not valid, over all shards, with the commonest reason."""
    shards = list(shards)
    count = sum(shard.quarantined or 0 for shard in shards)
    rows = count + sum(shard.rows for shard in shards)
    reasons = _added(shard.reasons for shard in shards)
    text = f"{count:,} of {counted(rows, 'row')} {be(count)} quarantined ({_share(count, rows)}){_most(reasons)}"
    return Guard("rows_quarantined", count <= MOST_QUARANTINED * rows, text, {"quarantined": count, "rows": rows})


def dropped(manifest: ManifestSummary) -> Guard:
    """Valid rows that the token policy dropped, with the commonest reason. Those beyond what the recipe asks for are
    none of them."""
    lost = {reason: count for reason, count in manifest.reasons.items() if reason not in (AGREED, BEYOND, NOT_SWEPT)}
    asked = sum(manifest.reasons.values()) - sum(lost.values())
    count, rows = (manifest.dropped or 0) - asked, (manifest.rows or 0) - asked
    text = f"{count:,} of {counted(rows, 'row')} {be(count)} dropped ({_share(count, rows)}){_most(lost)}"
    return Guard("rows_dropped", count <= MOST_DROPPED * rows, text, {"dropped": count, "rows": rows})


def left_out(manifest: ManifestSummary) -> Guard:
    """Shards that take no part, by name. One that a person withdrew is left out on purpose."""
    lost = {name: why for name, why in manifest.left_out.items() if why != "withdrawn"}
    named = "; ".join(f"{name}: {why}" for name, why in sorted(lost.items())[:3])
    more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
    text = (
        f"{counted(len(lost), 'shard is', 'shards are')} left out ({named}{more})" if lost else "every shard takes part"
    )
    return Guard("shards_left_out", not lost, text, {"left_out": len(lost)})


def _share(count: float, of: float) -> str:
    return f"{count / of if of else 0.0:.1%}".replace("%", " %")


def _added(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for each in counts:
        for reason, count in each.items():
            total[reason] = total.get(reason, 0) + count
    return total


def _most(reasons: Mapping[str, int]) -> str:
    if not reasons:
        return ""
    reason = max(sorted(reasons), key=lambda name: reasons[name])
    return f", most of them for: {reason} ({reasons[reason]:,})"


# The policy: what was wrong before training, at its start and on its way.

FEW_ROWS = 1_000
MANY_EPOCHS = 3.0

POLICY_GUARDS = {
    "agreement_at_start": "The untrained policy scores the first rows as the reference did.",
    "reference_unchanged": "The reference's files are, after training, those that were scored.",
    "training_setup": "The start checkpoint, its chat template and the number of epochs suit the data.",
    "training_stopped": "No condition of the recipe's `stop` ended the training early.",
    "training_signs": "Rewards, margin and held-out accuracy move as in a training that goes well.",
}
POLICY_REMEDIES = {
    "reference_unchanged": "put the file back from a backup, or remove the artifact so that it is made again",
    "training_stopped": "nothing, if the recipe's stop is meant so; the policy is that of the step it names",
    "training_signs": "`align report RECIPE` draws the curves; docs/methods.md says what goes wrong with each method",
}


def policy_guards(settings: Dpo, tokens: TokenPolicy) -> Guards:
    """The guards of `policy_checkpoint`, for the recipe's sections `dpo` and `tokens`."""
    has_reference = method_of(settings).needs_reference

    def find(store: Store, commit: Commit, deep: bool) -> list[Guard]:
        summary = PolicySummary.of(commit)
        wrong = setup_notes(store, commit.inputs["manifest"], commit.inputs["checkpoint"], settings, tokens)
        guards = [training_setup(wrong), stopped(summary), training_signs(summary, settings)]
        if not has_reference:
            return guards
        return [agreement(summary), reference_unchanged(store, commit, deep), *guards]

    reference = {"agreement_at_start", "reference_unchanged"}
    about = {name: text for name, text in POLICY_GUARDS.items() if has_reference or name not in reference}
    return Guards(about, find, POLICY_REMEDIES)


def agreement(summary: PolicySummary) -> Guard:
    """How far the untrained policy was from its cached reference. A run that disagrees ends as an error, so a policy
    without a record was resumed, or its check was made in an earlier attempt."""
    known = {name: value for name, value in summary.agreement.items() if value is not None}
    if "worst_nats" not in known:
        text = "not compared in this attempt: training went on from a trainer checkpoint"
        return Guard("agreement_at_start", True, text)
    mean = f", {known['mean_nats']:+.2g} on average" if "mean_nats" in known else ""
    text = f"the first rows differ from the cached reference by at most {known['worst_nats']:.2g} nats a sequence{mean}"
    return Guard("agreement_at_start", True, text, known)


def reference_unchanged(store: Store, commit: Commit, deep: bool) -> Guard:
    """Whether the start checkpoint, which was scored as the reference, still has the committed files."""
    name, reference = "reference_unchanged", commit.inputs.get("reference", commit.inputs["checkpoint"])
    if not deep:
        return Guard(name, True, "not compared here")
    try:
        store.fetch(reference, deep=True)
    except MissingArtifact:
        return Guard(name, True, "the reference was erased since, so that nothing can be compared")
    except CorruptArtifact as error:
        return Guard(name, False, f"the reference changed since it was scored: {error}", severity="error")
    return Guard(name, True, f"every file of {reference.digest[:12]} has its recorded sha256")


def setup_notes(store: Store, manifest: Artifact, start: Artifact, settings: Dpo, tokens: TokenPolicy) -> list[str]:
    """A sentence for each thing about data and start checkpoint that wastes a training, before it begins."""
    started, data = store.commit_of(start), ManifestSummary.of(store.commit_of(manifest))
    checkpoint = CheckpointSummary.of(started)
    has_template = checkpoint.has_chat_template
    notes = []
    if started.kind != POLICY and SftSummary.of(started).adopted and has_template is False:
        notes.append(
            "the start checkpoint was adopted and has no chat template, as base models: preferences alone do not teach"
            " to answer; give sft.dataset, or a method that starts from the base model"
        )
    if checkpoint.template_ends_answers is False:
        notes.append(
            "the chat template puts none of the checkpoint's ends behind an answer: one is put there for training, but"
            " earlier turns of a conversation go without, and so does everything that others write with the template;"
            " mend base_model.chat_template"
        )
    if (sft := sft_settings(store, start)) is not None and (note := as_fast_as_sft(settings, sft)):
        notes.append(note)
    if has_template and tokens.plain_text == "as_is" and (texts := text_shards(store, manifest)):
        notes.append(
            f"{counted(len(texts), 'shard holds', 'shards hold')} plain text (first: {texts[0]}) and the model has a"
            " chat template, which they do not get: set tokens.plain_text: chat"
        )
    if data.train is not None and data.train < FEW_ROWS and settings.epochs > MANY_EPOCHS:
        method = method_of(settings)
        nearer = " or a larger beta" if method.needs_reference and "beta" in method.settings() else ""
        notes.append(
            f"{counted(data.train, 'row is', 'rows are')} trained on for {counted(settings.epochs, 'epoch')}: so"
            f" small a set is learnt by heart; fewer epochs{', ' if nearer else ' or '}a lower learning rate{nearer}"
        )
    return notes


def sft_settings(store: Store, start: Artifact) -> SftTraining | None:
    """What the SFT of a start checkpoint was trained with; None of one that was not trained here."""
    if start.kind != SFT_CHECKPOINT or SftSummary.of(store.commit_of(start)).adopted:
        return None
    try:
        asked = json.loads(store.read(start, REQUEST_FILE))
    except MissingArtifact:  # erased, or of a version that kept none
        return None
    return SftTraining.model_validate(asked["settings"]) if asked.get("dataset") else None


def text_shards(store: Store, manifest: Artifact) -> list[str]:
    """Names of the manifest's shards with a row of plain strings; one column of each is read, where it lies. Shards
    whose rows were erased are passed over."""
    found = []
    for shard in pinned_shards(store, manifest):
        place = shard.shard
        with (
            suppress(FileNotFoundError),
            store.fs.open(store.path(place.kind, place.key, place.attempt, ROWS_FILE), "rb") as stream,
            pq.ParquetFile(stream, read_dictionary=["form"]) as file,
        ):
            forms = (batch.column("form").dictionary.to_pylist() for batch in file.iter_batches(columns=["form"]))
            if any("text" in each for each in forms):
                found.append(shard.name)
    return sorted(found)


def training_setup(wrong: Sequence[str]) -> Guard:
    """What was wrong before training began."""
    return Guard("training_setup", not wrong, "; ".join(wrong) or "nothing unusual", {"notes": len(wrong)})


def stopped(summary: PolicySummary) -> Guard:
    """Which condition of `stop` ended the training, if one did."""
    why = summary.stopped_by
    text = why or f"trained all of its {counted(summary.steps or 0, 'step')}"
    return Guard("training_stopped", why is None, f"{text}; {summary.kept}" if summary.kept else text)


def training_signs(summary: PolicySummary, settings: Dpo) -> Guard:
    """The signs of a training that goes wrong (alignment/training/signs.py)."""
    found = signs(summary.history, summary.held_out, settings, summary.rows_held_out)
    held_out = {f"held_out_{name}": value for name, value in summary.held_out.items() if value is not None}
    trouble = "; ".join(sign.text for sign in found if sign.bad) or "none of the known signs of trouble"
    hints = "; ".join(sign.text for sign in found if not sign.bad)
    text = f"{trouble}; worth knowing: {hints}" if hints else trouble
    return Guard("training_signs", not any(sign.bad for sign in found), text, held_out)
