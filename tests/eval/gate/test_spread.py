"""The spread from run to run, in words."""

from __future__ import annotations

from statistics import stdev

from eval.gate.spread import spread, spreads
from eval.suites.samples import Sample


def run(right: int, suite: str = "ifeval", metric: str = "prompt_level_strict_acc") -> list[Sample]:
    return [Sample(suite, str(n), str(n), metric, float(n < right), "") for n in range(100)]


def test_the_sentence_has_the_spread_the_difference_in_it_and_the_published_spread() -> None:
    told = spread("ifeval/prompt_level_strict_acc", [run(50), run(54), run(52)], 0.04)
    assert told is not None and stdev([50, 54, 52]) == 2
    assert told == (
        "ifeval/prompt_level_strict_acc: 3 trainings with other seeds gave 50.0 % to 54.0 %, a standard deviation of"
        " 2.0 percentage points from run to run; the difference of +4.0 is 2.0 times that (Olmo 3 published 0.88 for"
        " its runs)"
    )


def test_nothing_is_said_of_one_training_and_of_what_no_other_was_measured_on() -> None:
    assert spread("ifeval/prompt_level_strict_acc", [run(50)]) is None
    assert spread("ifeval/inst_level_strict_acc", [run(50), run(51)]) is None
    runs = [{"ifeval": run(50), "gsm8k": run(3, "gsm8k", "exact_match,strict-match")}, {"ifeval": run(51)}]
    metrics = ["ifeval/prompt_level_strict_acc", "gsm8k/exact_match,strict-match", "answers/length"]
    (told,) = spreads(metrics, runs, {})
    assert told.startswith("ifeval/") and "the difference" not in told
