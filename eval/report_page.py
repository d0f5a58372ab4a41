"""`report.html`: one self-contained page, verdict first. What it shows is prepared here, drawn by the template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from alignment.artifacts import Artifact, Store
from eval.compare import MetricComparison
from eval.decision import Verdict
from eval.evidence import Compared, Evidence, ReportRequest
from eval.forest import Forest, forest
from eval.jsonl import read_records
from eval.responses import ITEMS_FILE
from eval.samples import Sample
from eval.suites import SUITES, Suite

TEMPLATE = "report.html.jinja"
EXAMPLES = 5
"""Most items shown at each end of a suite."""
LONGEST_TEXT = 2000
HEADLINES = {
    "pass": "Passed: the policy may be promoted",
    "fail": "Failed: the policy is not promoted",
    "inconclusive": "Inconclusive: the policy is not promoted",
    "none": "No gate: nothing is promoted",
}


@dataclass(frozen=True)
class Line:
    """One metric as it is read: numbers already in the suite's unit, as text."""

    metric: str
    n: int
    baseline: str
    candidate: str
    difference: str
    interval: str
    detectable: str
    verdict: str
    missing: int


@dataclass(frozen=True)
class Table:
    """One suite against one baseline."""

    title: str
    unit: str
    lines: list[Line]
    plot: Forest


@dataclass(frozen=True)
class Example:
    """One item with both answers, and what the candidate gained or lost on it."""

    id: str
    difference: str
    prompt: str
    baseline: str
    candidate: str


@dataclass(frozen=True)
class Examples:
    title: str
    metric: str
    best: list[Example]
    worst: list[Example]


def page(request: ReportRequest, evidence: Evidence, verdict: Verdict, notes: Sequence[str], store: Store) -> str:
    """The HTML text; everything that a model or a data file wrote is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("eval"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    champion = evidence.against_champion
    return environment.get_template(TEMPLATE).render(
        headline=HEADLINES[verdict.outcome],
        verdict=verdict,
        notes=notes,
        sft=request.sft.digest,
        policy=request.policy.digest,
        champion=None if request.champion is None else request.champion.digest,
        champion_note=request.champion_note,
        against_sft=tables(evidence.against_sft),
        against_champion=None if champion is None else tables(champion),
        examples=[
            examples(suite, evidence, prompts(store, request.policy_scores[suite.name], suite))
            for suite in SUITES.values()
            if suite.name in evidence.against_sft.suites
        ],
    )


def tables(compared: Compared) -> list[Table]:
    """A table with its forest plot per compared suite, in the suites' own order."""
    return [_table(SUITES[name], compared.suites[name]) for name in SUITES if name in compared.suites]


def _table(suite: Suite, metrics: Mapping[str, MetricComparison]) -> Table:
    factor = _factor(suite)
    plot = forest(
        list(metrics),
        [found.difference * factor for found in metrics.values()],
        [
            None if found.ci95 is None else (found.ci95[0] * factor, found.ci95[1] * factor)
            for found in metrics.values()
        ],
        [found.verdict for found in metrics.values()],
    )
    unit = "percentage points" if factor == 100 else f"rating {suite.scale[0]:g} to {suite.scale[1]:g}"
    return Table(suite.title, unit, [_line(name, found, factor) for name, found in metrics.items()], plot)


def _line(metric: str, found: MetricComparison, factor: float) -> Line:
    def shown(value: float | None, sign: str = "") -> str:
        return "unknown" if value is None else f"{value * factor:{sign}.{1 if factor == 100 else 2}f}"

    low, high = found.ci95 if found.ci95 is not None else (None, None)
    return Line(
        metric=metric,
        n=found.n,
        baseline=shown(found.baseline),
        candidate=shown(found.candidate),
        difference=shown(found.difference, "+"),
        interval="unknown" if low is None else f"{shown(low, '+')} to {shown(high, '+')}",
        detectable=shown(found.minimum_detectable_effect),
        verdict=found.verdict,
        missing=found.missing,
    )


def _factor(suite: Suite) -> float:
    return 100.0 if suite.scale == (0.0, 1.0) else 1.0


def prompts(store: Store, scores: Artifact, suite: Suite) -> dict[str, str]:
    """What each item asked, from the items kept beside the responses."""
    responses = store.commit_of(scores).inputs["responses"]
    records = read_records(store.fetch(responses) / suite.name / ITEMS_FILE)
    return {str(record["id"]): _question(record["item"]) for record in records}


def _question(item: Mapping[str, object]) -> str:
    turns = item.get("turns")
    if isinstance(turns, list):
        return "\n\n".join(f"{number}. {turn}" for number, turn in enumerate(turns, start=1))
    return str(item.get("question", item.get("prompt", "")))


def examples(suite: Suite, evidence: Evidence, asked: Mapping[str, str]) -> Examples:
    """The items with the largest gains and losses on the suite's main metric."""
    metric = suite.metrics[-1] if suite.task is None else suite.metrics[0]
    before = {sample.id: sample for sample in evidence.sft[suite.name].samples if sample.metric == metric}
    pairs = [
        (before[sample.id], sample, sample.value - before_value)
        for sample in evidence.policy[suite.name].samples
        if sample.metric == metric and sample.value is not None and sample.id in before
        if (before_value := before[sample.id].value) is not None
    ]
    ranked = sorted(pairs, key=lambda pair: (-pair[2], pair[0].id))

    def shown(pair: tuple[Sample, Sample, float]) -> Example:
        baseline, candidate, difference = pair
        return Example(
            id=candidate.id,
            difference=f"{difference:+.3g}",
            prompt=_cut(asked.get(candidate.cluster, "")),
            baseline=_cut(baseline.response),
            candidate=_cut(candidate.response),
        )

    return Examples(
        title=suite.title,
        metric=metric,
        best=[shown(pair) for pair in ranked[:EXAMPLES] if pair[2] > 0],
        worst=[shown(pair) for pair in reversed(ranked[-EXAMPLES:]) if pair[2] < 0],
    )


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]} …"
