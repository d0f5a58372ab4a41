"""The guards of an evaluation, and the findings of all guards behind a report, for its table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from alignment.data.statistics import GUARDS, Finding
from alignment.errors import counted
from alignment.guards import DATA_GUARDS, GATE, Guard, Guards, Severity, manifest_guards, of_data, policy_guards
from alignment.recipe.forward import TokenPolicy
from alignment.recipe.training import Dpo
from alignment.stages.execute import REQUEST_FILE
from alignment.stages.stage import trained_policy
from alignment.store import Artifact, Commit, MissingArtifact, Store
from eval.gate.bounded import ANSWERS, DIVERGENCE, ENDED, KL, LENGTH, NGRAMS
from eval.gate.compare import MetricComparison
from eval.gate.metrics import PERCENT, title_of
from eval.summaries import NewRowsSummary, ResponsesSummary, ScoresSummary

Comparisons = Mapping[str, Mapping[str, MetricComparison]]

CONTAMINATION = "contamination"
MOST_MISSING = 0.02
"""Of the items or judgments of a side, as in a gate's `max_missing`."""
MOST_RATIO = 2.0
MOST_LESS = 0.05
"""By how much a share may fall before a guard looks at it."""
MOST_KL = 10.0
"""Nats a response: beyond 5 to 10 a policy is another model than its start."""

REPORT_GUARDS = {
    GATE: "The gate passed the policy.",
    "answers_missing": f"At most {MOST_MISSING:.0%} of a side's items lack an answer, a judgment or a score.",
    "answer_length": f"The policy's answers are at most {MOST_RATIO:g} times as long as the start checkpoint's.",
    "answer_endings": f"The share of answers that end by themselves fell by no more than {100 * MOST_LESS:g} points.",
    "repetition": f"The share of distinct n-grams of an answer fell by no more than {100 * MOST_LESS:g} points.",
    "divergence": f"KL(policy ‖ start) is at most {MOST_KL:g} nats a response.",
    CONTAMINATION: GUARDS[CONTAMINATION],
}
REPORT_REMEDIES = {
    "answers_missing": "the log of the answers or scores says why they are missing; run it again once that is mended",
    "answer_length": "take a method that is normalised by length (simpo, or dpo with length_normalised), leave out"
    " pairs with preferences.max_length_gap, or bound answers/length in the gate with max_ratio",
    "answer_endings": "raise max_new_tokens if answers were cut; else train for fewer epochs or with a larger beta",
    "repetition": "read answers in the report; train for fewer epochs, at a lower learning rate or with a larger beta",
    "divergence": "raise beta or lower the learning rate; the gate bounds it with policy_divergence/kl: {at_most: …}",
}


@dataclass(frozen=True)
class Line:
    """A finding in the report's table, and the stage that it is about."""

    stage: str
    guard: Guard


def evaluation_findings(
    outcome: str,
    reasons: Sequence[str],
    bounded: Comparisons,
    scores: Mapping[str, Mapping[str, ScoresSummary]],
    contamination: Finding | None = None,
) -> list[Guard]:
    """One finding for each of `REPORT_GUARDS` that was measured; `scores` has each side's summaries by suite, and
    `contamination` is whether training rows hold items of the suites."""
    answers = bounded.get(ANSWERS, {})
    found = [gate(outcome, reasons), answers_missing(scores)]
    if LENGTH in answers:
        found.append(answer_length(answers[LENGTH]))
    if ENDED in answers:
        found.append(fallen("answer_endings", "answers that end by themselves", {ENDED: answers[ENDED]}))
    distinct = {name: answers[name] for name in (f"distinct_{n}" for n in NGRAMS) if name in answers}
    if distinct:
        found.append(fallen("repetition", "distinct n-grams of an answer", distinct))
    if KL in bounded.get(DIVERGENCE, {}):
        found.append(divergence(bounded[DIVERGENCE][KL]))
    if contamination is not None:
        found.append(of_data(contamination))
    return found


def gate(outcome: str, reasons: Sequence[str]) -> Guard:
    """The gate's verdict; a recipe without a gate asks nothing."""
    severity: Severity = "error" if outcome == "fail" else "warning"
    return Guard(GATE, outcome in ("pass", "none"), f"{outcome}: {'; '.join(reasons)}", {}, severity)


def answers_missing(scores: Mapping[str, Mapping[str, ScoresSummary]]) -> Guard:
    """Items and judgments without a value, on either side."""
    over: list[str] = []
    numbers: dict[str, float] = {}
    for side, suites in scores.items():
        for suite, summary in suites.items():
            numbers[f"{side}/{suite}"] = summary.lacking
            asked = summary.lacking + (summary.n or 0)
            if summary.lacking > MOST_MISSING * asked:
                over.append(f"{title_of(suite)}, {side}: {summary.told_lacking} of {asked}")
    total = sum(numbers.values())
    return Guard(
        "answers_missing",
        not over,
        "; ".join(over) or counted(total, "answer or judgment is missing", "answers or judgments are missing"),
        numbers,
    )


def answers_failed(store: Store, commit: Commit, deep: bool) -> list[Guard]:
    """Items of a checkpoint's responses without a whole answer."""
    suites = ResponsesSummary.of(commit).suites
    numbers = {suite: counts.failed for suite, counts in suites.items()}
    over = [
        f"{title_of(suite)}: {_without_answer(counts.failed, counts.items)}"
        for suite, counts in suites.items()
        if counts.failed > MOST_MISSING * counts.items
    ]
    items = sum(counts.items for counts in suites.values())
    text = "; ".join(over) or _without_answer(sum(numbers.values()), items)
    return [Guard("answers_missing", not over, text, numbers)]


def _without_answer(failed: int, items: int) -> str:
    return f"{failed} of {counted(items, 'item')} {'has' if failed == 1 else 'have'} no whole answer"


RESPONSES = Guards(
    {"answers_missing": f"At most {MOST_MISSING:.0%} of a suite's items have no whole answer."},
    answers_failed,
    {"answers_missing": "the log of the answers says why; run it again once that is mended"},
)


def answer_length(length: MetricComparison) -> Guard:
    """The ratio of the mean lengths in tokens."""
    ratio = length.ratio
    if ratio is None:
        return Guard("answer_length", True, "the start checkpoint's answers are empty")
    interval = (
        "" if ratio.low is None or ratio.high is None else f" (95 % interval {ratio.low:.3g} to {ratio.high:.3g})"
    )
    tokens = f"{length.baseline:.1f} → {length.candidate:.1f} tokens"
    text = f"answers are {ratio.value:.3g} times as long as the start checkpoint's{interval}: {tokens}"
    numbers = {"ratio": ratio.value, "sft": length.baseline, "policy": length.candidate}
    return Guard("answer_length", ratio.value <= MOST_RATIO, text, numbers)


def fallen(name: str, what: str, comparisons: Mapping[str, MetricComparison]) -> Guard:
    """Whether a share fell by more than `MOST_LESS`, and not by chance."""
    parts, holds = [], True
    numbers: dict[str, float] = {}
    for metric, compared in comparisons.items():
        ends = compared.ci95
        holds &= not (compared.difference < -MOST_LESS and ends is not None and ends[1] < 0)
        values = " → ".join(PERCENT.format(value) + PERCENT.sign for value in (compared.baseline, compared.candidate))
        spread = (
            "" if ends is None else " (95 % interval {} to {} points)".format(*(PERCENT.format(e, "+") for e in ends))
        )
        parts.append(f"{'' if len(comparisons) == 1 else metric + ' '}{values}{spread}")
        numbers |= {f"{metric}/sft": compared.baseline, f"{metric}/policy": compared.candidate}
    return Guard(name, holds, f"{what}: {', '.join(parts)}", numbers)


def divergence(kl: MetricComparison) -> Guard:
    """KL(policy ‖ start), the mean over sampled responses."""
    ends = "" if kl.ci95 is None else f" (95 % interval {kl.ci95[0]:.3g} to {kl.ci95[1]:.3g})"
    text = f"KL(policy ‖ start) is {kl.candidate:.3g} nats a response{ends}, over {counted(kl.n, 'response')}"
    return Guard("divergence", kl.candidate <= MOST_KL, text, {"kl": kl.candidate})


def findings_behind(store: Store, policy: Artifact) -> list[Line]:
    """The findings on a policy and on its manifest, from their records; none of a policy that was not trained here.

    The reference's files are not hashed again for a report: Dagster shows what was found when the policy was made. What
    the data's own numbers say has a table of its own.
    """
    commit = store.commit_of(policy)
    if not {"manifest", "checkpoint"} <= commit.inputs.keys():
        return []
    commit = trained_policy(store.commit_of, commit)
    try:
        record = json.loads(store.read(commit.artifact, REQUEST_FILE))
    except MissingArtifact:
        return []
    settings, tokens = Dpo.model_validate(record["settings"]), TokenPolicy.model_validate(record["tokens"])
    manifest = store.commit_of(commit.inputs["manifest"])
    groups = {
        "preference_manifest": manifest_guards().findings(store, manifest, deep=False),
        "policy_checkpoint": policy_guards(settings, tokens).findings(store, commit, deep=False),
    }
    return [
        Line(stage, guard)
        for stage, guards in groups.items()
        for guard in guards
        if guard.name not in ("reference_unchanged", *DATA_GUARDS)
    ]


DRIFT = 0.05
"""A fall of accuracy from which on, if it is beyond chance, the data is not what the champion was trained for."""
NEW_ROWS_GUARDS = {
    "drift": f"On rows that it never saw the champion's accuracy fell by less than {100 * DRIFT:g} points or by chance."
}


def drift_guards() -> Guards:
    """The alarm of a drift."""

    def find(store: Store, commit: Commit, deep: bool) -> list[Guard]:
        return drift_of(NewRowsSummary.of(commit))

    return Guards(NEW_ROWS_GUARDS, find)


def drift_of(summary: NewRowsSummary) -> list[Guard]:
    """Whether the accuracy fell from that on the champion's own held-out pairs; nothing where it is not known."""
    if summary.drift is None or summary.accuracy is None or summary.held_out_accuracy is None:
        return []
    fell = summary.drift <= -DRIFT and summary.drift_high is not None and summary.drift_high < 0
    ends = [PERCENT.format(end, "+") for end in (summary.drift_low, summary.drift_high) if end is not None]
    interval = f" (95 % interval {' to '.join(ends)} points)" if ends else ""
    of_sources = f" of the same sources{_told_sources(summary)}" if summary.sources else ""
    shared = [one.measured for one in summary.sources.values() if one.held_out_accuracy is not None]
    accuracy = summary.held_out_accuracy + summary.drift  # over the sources that have held-out pairs
    text = (
        f"the champion prefers the chosen side in {accuracy:.1%} of {sum(shared) or summary.measured:,} rows that it"
        f" never saw, and in {summary.held_out_accuracy:.1%} of its own held-out pairs{of_sources}{interval}"
    )
    advice = "; look at the new data: other prompts, other annotators, or flipped labels" if fell else ""
    return [Guard("drift", not fell, text + advice, {"drift": summary.drift, "measured": summary.measured})]


def _told_sources(summary: NewRowsSummary) -> str:
    """Each source's accuracy, where rows of several are new."""
    if len(summary.sources) < 2:
        return ""
    told = [
        f"{name} {one.accuracy:.1%} of {one.measured:,}"
        + (", new" if one.held_out_accuracy is None else f", {one.held_out_accuracy:.1%} held out")
        for name, one in summary.sources.items()
    ]
    return f" ({'; '.join(told)})"
