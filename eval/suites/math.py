"""MATH (Hendrycks et al. 2021): competition problems, answered in a box.

lm-eval's `hendrycks_math` compares the text between the first and the last dollar sign, so it takes
`The answer is $\\boxed{2}$` for wrong. Here the answer is what the last box holds, or what follows "the answer is".
Two answers are equal if lm-eval's own normalisation of MATH's answers makes them equal, or if they are the same number.
"""

from __future__ import annotations

import re
from typing import Any

from eval.suites.suite import Item, Suite

SCORER = "boxed-answer-v1"
INSTRUCTION = "Put your final answer in \\boxed{}."
BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
BRACE = re.compile(r"[{}]")
BARE_BOX = re.compile(r"\\(?:boxed|fbox)\s+([^\s${}.,]+)")
SAID = re.compile(r"answer\s*(?:is|:)\s*:?\s*(.+?)(?:\.\s|\.?$)", re.IGNORECASE | re.MULTILINE)
WRAPPED = re.compile(r"^(?:\$+|\\\(|\\\[|\*\*)\s*(.*?)\s*(?:\$+|\\\)|\\\]|\*\*)$", re.DOTALL)
THOUSANDS = re.compile(r"(?<=\d)(?:,|\\,|\{,\})(?:\\!)?(?=\d{3}\b)")


def boxed(text: str) -> str | None:
    """What the last box of a text holds; None without a box that is closed."""
    closed: dict[int, int] = {}
    opened: list[int] = []
    for brace in BRACE.finditer(text):  # once for all boxes: an answer may be nothing but boxes that are never closed
        if brace[0] == "{":
            opened.append(brace.start())
        elif opened:
            closed[opened.pop()] = brace.start()
    boxes = [match.end() for match in BOX.finditer(text) if match.end() - 1 in closed]
    if boxes:
        return text[boxes[-1] : closed[boxes[-1] - 1]].strip()
    bare = BARE_BOX.findall(text)
    return bare[-1] if bare else None


def answer_in(text: str) -> str | None:
    """The answer that a text gives: its last box, or else what follows its last "the answer is"."""
    if (inside := boxed(text)) is not None:
        return inside
    said = SAID.findall(text)
    return said[-1].strip() if said else None


def same(answer: str, truth: str) -> bool:
    """Whether two answers are equal."""
    from lm_eval.tasks.hendrycks_math.utils import is_equiv

    one, other = _plain(answer), _plain(truth)
    if is_equiv(one, other):
        return True
    try:
        return float(one) == float(other)
    except ValueError:
        return False


def _plain(answer: str) -> str:
    text = answer.strip()
    while (match := WRAPPED.match(text)) is not None:
        text = match[1]
    return THOUSANDS.sub("", text).rstrip(". ")


def prepare(record: dict[str, Any]) -> dict[str, Any]:
    """A record with `truth`, the right answer, and the problem as a turn that asks for a box.

    MATH-500 names the answer; in the original data it stands in the solution's box.
    """
    problem, answer, solution = record.get("problem"), record.get("answer"), record.get("solution")
    truth = answer if isinstance(answer, str) else boxed(solution) if isinstance(solution, str) else None
    prepared = record | {"turns": [f"{problem}\n\n{INSTRUCTION}" if isinstance(problem, str) else None]}
    return prepared if truth is None else prepared | {"truth": truth}


def classify(item: Item, answer: str) -> tuple[dict[str, float], dict[str, Any]]:
    """1 for a right answer; 0 for a wrong one, or for none."""
    given = answer_in(answer)
    right = given is not None and same(given, item.fields["truth"])
    outcome = "right" if right else "no_answer" if given is None else "wrong"
    detail = {"class": outcome, "extracted": given, "truth": item.fields["truth"], "by": SCORER}
    return {"exact_match": float(right)}, {name: value for name, value in detail.items() if value is not None}


MATH = Suite(
    name="math",
    title="MATH",
    fields={"problem": str, "truth": str, "turns": list},
    id_field=None,
    metrics=("exact_match",),
    task=None,
    prepare=prepare,
    classify=classify,
    classifier=SCORER,
)
