"""What to do about a file whose records are in no form: said once a file, in one line."""

from __future__ import annotations

from collections.abc import Collection

from alignment.data.forms.table import FORMS, Form, columns_of
from alignment.data.forms.verdicts import NO_VERDICT

GENERAL = ("pairs", "unpaired", "ranked responses", "comparisons")
"""Forms without an author, which `preferences.columns` maps to."""
FORM = {form.name: form for form in FORMS}
LIKELY = {
    "prompt": ("prompt", "question", "query", "instruction", "input", "post", "request", "context", "user"),
    "chosen": ("chosen", "good", "preferred", "better", "best", "accepted", "positive", "win"),
    "rejected": (
        "rejected",
        "bad",
        "dispref",
        "worse",
        "worst",
        "negative",
        "lose",
        "loss",
        "non_pref",
        "nonpref",
        "unpref",
    ),
    "completion": ("completion", "response", "answer", "output", "reply"),
    "label": ("label", "feedback", "thumb", "rating", "score", "vote"),
    "responses": ("responses", "completions", "answers", "candidates", "outputs", "generations"),
    "scores": ("scores", "ratings", "rewards"),
    "ranks": ("ranks", "ranking"),
    "response_a": ("response_a", "answer_a", "output_a", "_a", "left", "_0", "1"),
    "response_b": ("response_b", "answer_b", "output_b", "_b", "right", "_1", "2"),
    "winner": ("winner", "preference", "verdict", "better", "choice"),
}
"""Parts of the names that people give such columns, the likeliest first."""
SHOWN_COLUMNS, LONGEST_COLUMN = 20, 60


def advice(columns: Collection[str]) -> str:
    """The columns that were seen, the nearest form, what it lacks, and how to map columns to it: one line."""
    names = [name[:LONGEST_COLUMN] for name in list(columns)[:SHOWN_COLUMNS]]
    more = f" and {len(columns) - SHOWN_COLUMNS} more" if len(columns) > SHOWN_COLUMNS else ""
    seen = f"its columns are {', '.join(names)}{more}" if names else "it has no columns"
    guesses = {name: _guessed(FORM[name], columns) for name in GENERAL}
    whole = [name for name in GENERAL if len(guesses[name]) == len(columns_of(FORM[name].columns))]
    if whole:
        mapping = guesses[whole[0]]
        nearest = f"the nearest form is {whole[0]} ({', '.join(mapping)})"
    else:
        form = max(FORMS, key=lambda form: 1 - len(_lacking(form, columns)) / len(columns_of(form.columns)))
        nearest = f"the nearest form is {form.name} ({form.columns.replace(' ', ', ')})"
        if lacking := _lacking(form, columns):
            nearest += f", which lacks {', '.join(lacking)}"
        mapping = {"prompt": "…", "chosen": "…", "rejected": "…"} | guesses["pairs"]
    written = ", ".join(f"{name}: {column}" for name, column in mapping.items())
    return f"{seen}; {nearest}; map them with preferences.columns: {{{written}}}"


def _lacking(form: Form, columns: Collection[str]) -> list[str]:
    return ["|".join(sorted(either)) for either in columns_of(form.columns) if either.isdisjoint(columns)]


def _guessed(form: Form, columns: Collection[str]) -> dict[str, str]:
    """Which column may be which of a general form's, each used once; only those that were found."""
    left, found = list(columns), {}
    # the rejected side first: `dispreferred` holds the word for the chosen one
    for either in sorted(form.columns.split(), key=lambda names: names != "rejected"):
        for name in either.split("|"):
            parts = LIKELY.get(name, (name,))
            if (column := next((one for part in parts for one in left if part in one.lower()), None)) is not None:
                found[name] = column
                left.remove(column)
                break
    return {name: found[name] for either in form.columns.split() for name in either.split("|") if name in found}


WORDS = "preferences.labels says what its words mean, such as"
REMEDIES = {
    "no weight": "preferences.weight_column names the column with a number in every record",
    "no margin": "preferences.margin_column names the column with a number in every record",
    "system beside plain strings": "preferences.columns: {system: system} reads its rows as conversations",
    NO_VERDICT: f"{WORDS} {{1: true, 2: false}} where 1 is response_a",
    "label is not true or false": f"{WORDS} {{helpful: true, useless: false}}",
    "feedback is not true or false": f"{WORDS} {{up: true, down: false}}",
    "prompts differ": "the two sides may part at the last answer only, which is the one that counts",
}
"""What to do about a reason, where it is no fault of the row."""


def remedy(reason: str, columns: Collection[str]) -> str | None:
    """What to do about a file whose commonest reason this is, where there is something to do."""
    return advice(columns) if of_the_form(reason) else REMEDIES.get(reason)


def of_the_form(reason: str) -> bool:
    """Whether a row with this reason may be in another form than it was read in."""
    return reason.startswith(("missing field", "missing column", "unknown form"))
