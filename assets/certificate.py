"""A certificate: what a recipe gives when it is run again with other seeds, and whether a published figure is among it.

It is kept with the policy that it is about, in the store at `certificates/<policy digest>.json`; the newest counts.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from alignment.store import Store
from eval.gate.metrics import headline
from eval.suites import SUITES

FOLDER = "certificates"
Noise = Literal["within", "outside", "unknown"]


class Published(BaseModel):
    """A published figure, and whether one more run could have given it by chance of the seed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    value: float
    source: str
    noise: Noise

    @property
    def judged(self) -> str:
        """What was found, as the end of a sentence about the figure."""
        if self.noise == "unknown":
            return "cannot be judged: the runs are all equal"
        return f"is {self.noise} run-to-run noise"


class NotEvaluated(Published):
    """A published figure of a metric that the report of some seed does not have: a suite without its judge, say."""

    metric: str
    noise: Noise = "unknown"

    @property
    def judged(self) -> str:
        """What was found, as the end of a sentence about the figure."""
        return "cannot be judged: not every run was evaluated on this metric"


class Certified(BaseModel):
    """A metric over runs with different seeds, on its own scale: `values` by seed, their mean and standard deviation.

    One more run lies between `low` and `high` with 95 % probability (Student's t); None for fewer than two runs, and
    for equal ones.
    `own` is the value of the policy that the certificate is about, and `noise` whether it lies there by the others.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: str
    values: dict[int, float]
    mean: float
    deviation: float | None
    low: float | None
    high: float | None
    width: float | None = None
    own: float
    noise: Noise
    published: list[Published] = []

    @property
    def ends(self) -> tuple[float | None, float | None]:
        """The interval as a person reads it: no run lies outside the metric's scale."""
        suite, _, metric = self.metric.partition("/")
        known = suite in SUITES and metric in SUITES[suite].metrics
        least, most = SUITES[suite].scale_of(metric) if known else (0.0, 1.0)
        if self.low is None or self.high is None or self.width != most - least:
            return self.low, self.high
        return max(least, self.low), min(most, self.high)


class Certificate(BaseModel):
    """`recipe` was run with `seeds`; `policy` is the digest of the policy of the first, which is the recipe's own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: str
    policy: str
    seeds: list[int]
    at: str
    device: str
    code: str
    seed_makes: list[str]
    """What the seed decides beside the course of a training: the embedded model, data or questions."""
    comparisons: int = 1
    """Published figures that were compared, each with an interval that is wider for their number; 1 in a certificate of
    an earlier version, whose intervals were not."""
    metrics: list[Certified]
    not_evaluated: list[NotEvaluated] = []

    def told(self) -> str:
        """The certificate in one line, by the suites' main metrics, for lineage and the card."""
        spread = [
            f"{one.metric} {one.mean:.4g} ± {one.deviation:.2g}"
            for one in self.main_metrics()
            if one.deviation is not None
        ]
        figures = [
            f"the published {metric} {figure.value:g} ({figure.source}) {figure.judged}"
            for metric, figure in self.figures()
        ]
        lead = self.repeated()
        return "; ".join([f"{lead}: {', '.join(spread)}" if spread else lead, *figures])

    def figures(self) -> list[tuple[str, Published]]:
        """Every published figure with its metric."""
        judged = [(one.metric, figure) for one in self.metrics for figure in one.published]
        return [*judged, *((one.metric, one) for one in self.not_evaluated)]

    @property
    def reproduced(self) -> bool:
        """Whether every published figure was evaluated and none lies outside of run-to-run noise."""
        return not self.not_evaluated and all(figure.noise != "outside" for _, figure in self.figures())

    def repeated(self) -> str:
        """How often it was repeated, and when."""
        return f"repeated with {len(self.seeds)} seeds on {self.at[:10]}"

    def widened(self) -> str:
        """By what several figures were judged, in one sentence; empty for one."""
        if self.comparisons < 2:
            return ""
        return (
            f"{self.comparisons} published figures are compared with intervals that are wider than these (Bonferroni),"
            " so that by chance alone some figure lies outside in 5 % of certificates at most"
        )

    def main_metrics(self) -> list[Certified]:
        """The main metric of every suite."""
        by_suite: dict[str, dict[str, Certified]] = {}
        for one in self.metrics:
            suite, _, metric = one.metric.partition("/")
            by_suite.setdefault(suite, {})[metric] = one
        return [metrics[headline(suite, metrics)] for suite, metrics in by_suite.items()]


def keep_certificate(store: Store, certificate: Certificate) -> None:
    """Writes the certificate of a policy in the place of an earlier one."""
    store.replace(_path(store, certificate.policy), certificate.model_dump_json(indent=1).encode())


def certificate_of(store: Store, policy: str) -> Certificate | None:
    """The certificate of a policy, by its digest; None if nobody made one."""
    try:
        return Certificate.model_validate_json(store.fs.cat_file(_path(store, policy)))
    except FileNotFoundError:
        return None


def about(certificate: Certificate | None) -> dict[str, Any] | None:
    """The certificate as plain data, with its sentence, and whether it says nothing against a published figure."""
    if certificate is None:
        return None
    told = {"told": certificate.told(), "reproduced": certificate.reproduced}
    return certificate.model_dump(mode="json") | told


def certificate_in(told: dict[str, Any]) -> Certificate:
    """The certificate in plain data (`about`)."""
    return Certificate.model_validate({name: value for name, value in told.items() if name in Certificate.model_fields})


def _path(store: Store, policy: str) -> str:
    return store.path(FOLDER, f"{policy}.json")
