"""`report.html`: a self-contained page that begins with the verdict. This file prepares what the template draws."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import Any

from alignment.errors import counted
from alignment.store import Store
from eval.gate.baselines import rankings
from eval.gate.bounded import ANSWERS
from eval.gate.compare import MetricComparison
from eval.gate.evidence import Evidence, ReportRequest
from eval.gate.metrics import PREFERENCES, headline, title_of, unit_of
from eval.gate.requirement import SHORT_NAMES
from eval.gate.scores import Compared
from eval.gate.sweep import Choice, Half, described
from eval.gate.verdict import Verdict
from eval.report.answers import divergence_of, examples, length, rounds_of
from eval.report.facts import Facts, categories_of, items_of, questions
from eval.report.guards import Line
from eval.report.pictures import sweep_png
from eval.report.tables import Categories, categories, tables
from eval.report.worth import Worth, new_rows_course
from eval.suites import SUITES

# Pages from templates: every value is escaped, and an undefined name is an error.


def render(template: str, **values: Any) -> str:
    """The text of a page from the template of that name."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("eval"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(duration=duration, probability=probability, breakable=breakable, counted=counted)
    return environment.get_template(template).render(**values)


def breakable(name: str) -> Any:
    """A metric's or stage's name, escaped, with places where a line may break."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"([_,/])", r"\1<wbr>", str(escape(name))))


def duration(seconds: float) -> str:
    """A number of seconds in words: seconds, minutes or hours."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def probability(value: float) -> str:
    """A p-value as text, such as p = 0.012 or p < 0.001."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


HEADLINES = {
    "pass": "Passed: the policy may be promoted",
    "fail": "Failed: the gate does not promote the policy",
    "inconclusive": "Inconclusive: the gate does not promote the policy",
    "none": "No gate: nothing is promoted",
}
VERDICT_WORDS = {
    "improved": "better on",
    "regressed": "worse on",
    "equivalent": "no different on",
    "inconclusive": "open on",
}


def page(
    request: ReportRequest,
    evidence: Evidence,
    verdict: Verdict,
    holm: Mapping[str, float],
    notes: Sequence[str],
    facts: Facts,
    store: Store,
    guards: Sequence[Line] = (),
) -> str:
    """The HTML text; all texts of models and data files are escaped. `holm` has the corrected p-values of the suites'
    main metrics, and `guards` the findings of every guard behind the report."""
    champion = evidence.against_champion
    suites, baseline = evidence.against_sft.suites, SHORT_NAMES[evidence.baseline]
    published, unranked = rankings(request.baselines, suites, baseline)
    asked = {suite: items_of(store, request.policy_scores[suite], suite) for suite in evidence.answered}
    return render(
        "report.html.jinja",
        headline=HEADLINES[verdict.outcome],
        summary=in_words(suites, started_at(baseline, "baseline")),
        verdict=verdict,
        facts=facts,
        sft=request.sft.digest,
        baseline=baseline,
        sides=SHORT_NAMES,
        baseline_name=started_at(baseline, "baseline"),
        start_name=started_at(baseline, "checkpoint"),
        policy=request.policy.digest,
        champion=None if request.champion is None else request.champion.digest,
        champion_note=request.champion_note,
        holm={title_of(suite): p_value for suite, p_value in holm.items()},
        preferences=PREFERENCES in suites,
        against_sft=tables(evidence.against_sft),
        against_champion=None if champion is None else tables(champion),
        categories=by_category(evidence, {suite: categories_of(items) for suite, items in asked.items()}, baseline),
        rankings=published,
        lengths=[
            change
            for suite in asked
            if (change := length(suite, evidence.sft[suite].samples, evidence.policy[suite].samples)) is not None
        ],
        divergence=divergence_of(store, request, baseline),
        rounds=rounds_of(store, request),
        examples=[
            examples(suite, evidence.sft[suite].samples, evidence.policy[suite].samples, questions(items))
            for suite, items in asked.items()
        ],
        notes=[*notes, *unranked],
        guards=guards,
        bounded=bounded_lines(evidence.against_sft, champion, baseline),
        sweep=None if evidence.choice is None else sweep_table(evidence.choice),
        worth=Worth(new_rows_course(store, request.recipe)),
    )


def sweep_table(choice: Choice) -> dict[str, Any]:
    """The points of a sweep as the page shows them, with the picture as a data address."""
    unit = unit_of(choice.width)

    def interval(half: Half) -> str:
        ends = [unit.format(end, "+") for end in (half.low, half.high) if end is not None]
        return " to ".join(ends) or "not known"

    return {
        "title": "Points of the sweep" if choice.called == "points" else "Averages as candidates",
        "called": choice.called,
        "metric": choice.metric,
        "unit": unit.name,
        "sentence": choice.sentence[:1].upper() + choice.sentence[1:],
        "confirmed": choice.confirmed,
        "suites": list(next(iter(choice.points.values())).means),
        "picture": b64encode(sweep_png(choice)).decode(),
        "points": [
            {
                "name": described(point.settings),
                "is_picked": name == choice.picked,
                "picking": unit.format(point.picking.difference, "+"),
                "confirming": unit.format(point.confirming.difference, "+"),
                "interval": interval(point.confirming),
                "corrected": "not known" if point.corrected is None else probability(point.corrected),
                "means": [f"{mean:#.3g}" for mean in point.means.values()],
            }
            for name, point in choice.points.items()
        ],
    }


def started_at(baseline: str, what: str) -> str:
    """The baseline's name in a sentence: SFT baseline or SFT checkpoint, as `what` says; adopted model; base model."""
    return f"{baseline} {what}" if baseline == SHORT_NAMES["sft"] else baseline


ANSWER_TITLES = {
    "length": "Tokens of an answer",
    "ended": "Answers that end by themselves",
    "distinct_2": "Distinct 2-grams of an answer",
    "distinct_4": "Distinct 4-grams of an answer",
}


def bounded_lines(sft: Compared, champion: Compared | None, baseline: str) -> list[dict[str, str]]:
    """A line for each metric of the answers against a baseline: its title, both means, the difference, its interval."""
    lines = []
    for against, compared in ((baseline, sft), ("champion", champion)):
        metrics = {} if compared is None else compared.bounded.get(ANSWERS, {})
        for metric, found in metrics.items():
            unit = unit_of(found.width)
            ends = ["none differs"] if found.ci95 is None else [unit.format(end, "+") for end in found.ci95]
            lines.append(
                {
                    "title": ANSWER_TITLES.get(metric, metric),
                    "against": against,
                    "baseline": unit.format(found.baseline) + unit.sign,
                    "candidate": unit.format(found.candidate) + unit.sign,
                    "change": unit.format(found.difference, "+"),
                    "interval": " to ".join(ends),
                    "n": f"{found.n:,}",
                }
            )
    return lines


def in_words(suites: Mapping[str, Mapping[str, MetricComparison]], baseline: str = "SFT baseline") -> str:
    """The suites' main metrics in one sentence, such as "better on IFEval; no different on GSM8K"."""
    grouped: dict[str, list[str]] = {}
    for suite, metrics in suites.items():
        comparison = metrics[headline(suite, metrics)]
        grouped.setdefault(comparison.verdict, []).append(title_of(suite))
    parts = [f"{words} {_listed(grouped[name])}" for name, words in VERDICT_WORDS.items() if name in grouped]
    return f"Against its {baseline}: {'; '.join(parts)}." if parts else "Nothing could be compared."


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def by_category(evidence: Evidence, of_items: Mapping[str, Mapping[str, str]], baseline: str) -> list[Categories]:
    """Scores by category, for every compared suite of ours whose items have categories."""
    models = {baseline: evidence.sft, "policy": evidence.policy}
    return [
        table
        for suite, named in of_items.items()
        if suite in SUITES
        if (
            table := categories(
                suite, {model: scores[suite].samples for model, scores in models.items()}, named, SUITES[suite].scale
            )
        )
    ]
