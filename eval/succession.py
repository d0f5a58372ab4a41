"""`align judge succeed`: a new judge is asked what the old one was asked, and both are compared."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignment.errors import BadInput, counted, first_few
from alignment.recipe.evaluation import Judge
from eval.gate.succession import ENOUGH, Place, Side, agreement, question_of, sampled
from eval.grading.choose import bill, shortfall
from eval.judge.endpoint import Endpoint, Outcome
from eval.judge.files import ALL, all_judgments
from eval.judge.journal import Journal
from eval.judge.judgment import Judgment, Question
from eval.judge.prompts import Prompts, default_prompts, parse_prompts
from eval.suites.rows import read_rows

QUESTIONS = 80
"""Questions a suite that both judges are compared on by default: MT-Bench's number."""
UNDECIDED = "undecided (the verdicts differ, but both judges may see the same difference)"


def sides_of(suite: str, files: Sequence[str | Path]) -> list[Side]:
    """The sides in files of stored judgments: one for each model that they name."""
    by_model: dict[str, list[Judgment]] = defaultdict(list)
    for file in files:
        for judgment in all_judgments(file, ALL):
            by_model[judgment.model or Path(str(file)).stem].append(judgment)
    return [Side(suite, name, tuple(judgments)) for name, judgments in by_model.items()]


def succeed(
    old: str,
    judge: Judge,
    sides: Sequence[Side],
    out: str | Path,
    prompts: Mapping[str, str | Path | None] | None = None,
    pairs: Sequence[tuple[str, str]] | None = None,
    limit: int | None = QUESTIONS,
    repeats: int = 0,
    widen: bool = False,
    source: str = "judgments",
) -> dict[str, Any]:
    """Asks `judge` the questions behind the old judge's stored judgments, and returns plain JSON values.

    `sides` are of one or several suites; judgments that `old` did not make are left out. `prompts` names a suite's file
    of judge prompts; our own by default. `limit` is the number of questions a suite, and `repeats` how often each is
    asked again, for the judge's noise. The new judgments are appended to `out` when they arrive, and not asked again.

    The values are `old, new, out, suites` (an `Agreement` each), `judge` (the bill) and `problem`: one line if some
    questions have no judgment, else None. Raises `BadInput` if `old` judged nothing here, and for judgments that do not
    say what was asked.
    """
    chosen: list[Side] = []
    for suite in dict.fromkeys(side.suite for side in sides):
        chosen += sampled(_judged_by(old, [side for side in sides if side.suite == suite]), limit)
    if not chosen:
        judges = sorted({one.judge or "a judge without a name" for side in sides for one in side.judgments})
        problem = f"no stored judgment of {old}; there are judgments of {first_few(judges) or 'nobody'}"
        raise BadInput(problem, file=source, field="OLD")
    known: dict[str, Prompts] = {suite: _prompts((prompts or {}).get(suite)) for suite in {one.suite for one in chosen}}
    asked = {
        (side.suite, side.name): {
            question_of(one, known[side.suite], source, repeat): one.place
            for one in side.judgments
            for repeat in range(repeats + 1)
        }
        for side in chosen
    }
    made, outcome = _ask(judge, out, asked)
    found = []
    for suite in known:
        first: dict[tuple[str, Place], Judgment] = {}
        again: defaultdict[tuple[str, Place], list[Judgment]] = defaultdict(list)
        for (of, name), questions in asked.items():
            for question, place in questions.items() if of == suite else ():
                judgment = made.get((of, name, question))
                if judgment is not None and question.repeat:
                    again[name, place].append(judgment)
                elif judgment is not None:
                    first[name, place] = judgment
        found.append(agreement([side for side in chosen if side.suite == suite], first, pairs, again, widen))
    return {
        "old": old,
        "new": str(judge.model),
        "out": str(out),
        "suites": [one.model_dump(mode="json") for one in found],
        "judge": bill(outcome, judge),
        "problem": shortfall(outcome, sum(map(len, asked.values()))) or None,
        "too_few": [one.suite for one in found if not one.enough],
    }


def _judged_by(old: str, sides: Sequence[Side]) -> list[Side]:
    """The old judge's judgments; single answers before pairs if a suite has both, because they are two scales."""
    own = [Side(side.suite, side.name, tuple(one for one in side.judgments if one.judge == old)) for side in sides]
    alone = any(not one.game for side in own for one in side.judgments)
    kept = [
        Side(side.suite, side.name, tuple(one for one in side.judgments if bool(one.game) != alone)) for side in own
    ]
    return [side for side in kept if side.judgments]


def _prompts(file: str | Path | None) -> Prompts:
    return default_prompts() if file is None else parse_prompts(read_rows(file), str(file))


def _ask(
    judge: Judge, out: str | Path, asked: Mapping[tuple[str, str], Mapping[Question, Place]]
) -> tuple[dict[tuple[str, str, Question], Judgment], Outcome]:
    """The new judge's judgments by suite, side and question, and what all the asking came to."""
    endpoint, whole = Endpoint(judge), Outcome()
    made: dict[tuple[str, str, Question], Judgment] = {}
    with Journal(Path(out)) as journal:
        for (suite, name), questions in asked.items():
            outcome = endpoint.ask(list(questions), journal, name)
            whole.judgments += outcome.judgments
            whole.failed |= outcome.failed
            whole.refused |= outcome.refused
            whole.unasked += outcome.unasked
            whole.asked += outcome.asked
            whole.served |= outcome.served
            whole.budget, whole.usage = outcome.budget or whole.budget, outcome.usage
            for question in questions:
                entry = journal.find(endpoint.digest(question))
                if entry is not None:
                    made[suite, name, question] = entry.judgment
    return made, whole


def show_succession(result: dict[str, Any]) -> None:
    """Prints what two judges say of the same answers."""
    print(f"{result['new']} in place of {result['old']}")
    for one in result["suites"]:
        print(
            f"\n{one['suite']} ({one['metric']}): {counted(one['n'], 'judgment')} of"
            f" {counted(one['questions'], 'question')}"
        )
        if one["unread_old"] or one["unread_new"]:
            print(f"  without a verdict: {one['unread_old']} of the old judge's, {one['unread_new']} of the new one's")
        if one["offset"] is None:
            continue
        close = "" if one["close"] is None else f", {one['close']:.1%} within a point"
        related = "" if one["correlation"] is None else f", correlation {one['correlation']:.3f}"
        print(f"  agreement {one['agreement']:.1%}{close}{related}")
        print(f"  offset {one['offset']:+.4f} {_ends(one['ci95'])} ({one['old']:.4f} -> {one['new']:.4f})")
        if not one["enough"]:
            print(f"  too few questions for a claim: at least {ENOUGH}")
        noise = one["noise"]
        if noise["repeat_sd"] is not None:
            print(f"  asked {noise['repeats']} times: standard deviation {noise['repeat_sd']:.4f} a judgment")
        if noise["flipped"] is not None:
            print("  verdicts that turn with the order: {:.1%} -> {:.1%}".format(*noise["flipped"]))
        if noise["verbosity"] is not None:
            spread = "" if noise["verbosity_stderr"] is None else f" (standard error {noise['verbosity_stderr']:.4f})"
            print(f"  per 1000 characters more, against the old judge: {noise['verbosity']:+.4f}{spread}")
        for past in one["verdicts"]:
            words = "CHANGED" if past["changed"] else UNDECIDED if past["undecided"] else "stands"
            print(f"  {past['baseline']} -> {past['candidate']}, {past['n']} turns: {words}")
            for judge in ("old", "new"):
                ends = _ends(past[f"{judge}_ci95"])
                print(f"    {judge}: {past[f'{judge}_difference']:+.4f} {ends} {past[f'{judge}_verdict']}")
            print(f"    new - old: {past['shift']:+.4f} {_ends(past['shift_ci95'])}")
    if result["too_few"]:
        print(f"\nnothing is claimed of {', '.join(result['too_few'])}")
    print(f"\nnew judgments: {result['out']}")


def _ends(ci95: Sequence[float] | None) -> str:
    return "[-]" if ci95 is None else f"[{ci95[0]:+.4f}, {ci95[1]:+.4f}]"
