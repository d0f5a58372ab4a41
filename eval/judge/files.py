"""Judgments on disk, in FastChat's two forms: one line an answer, or one line a pair with both games."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from alignment.errors import BadInput, first_few
from eval.judge.judgment import Judgment, Parsing
from eval.suites.rows import check_text, read_rows, write_records
from eval.suites.suite import Item

GAMES = (1, 2)
WINNERS = {None: "error", 1.0: "model_1", 0.5: "tie", 0.0: "model_2"}


def write_judgments(path: Path, judgments: Sequence[Judgment]) -> None:
    """Writes a FastChat file. Both games of a pair are on one line, at the place of the first."""
    write_records(path, judgment_records(judgments))


def judgment_records(judgments: Iterable[Judgment]) -> list[dict[str, Any]]:
    """The lines of a FastChat file; both games of a pair are one line."""
    pairs: dict[tuple[str, int], dict[str, Any]] = {}
    records: list[dict[str, Any]] = []
    for judgment in judgments:
        if not judgment.game:
            records.append(single_record(judgment))
        elif (place := (judgment.question_id, judgment.turn)) in pairs:
            pairs[place] |= game_fields(judgment)
        else:
            pairs[place] = game_record(judgment)
            records.append(pairs[place])
    return records


def single_record(judgment: Judgment) -> dict[str, Any]:
    """The line of an answer that was judged alone. A rating that cannot be read is −1."""
    return {
        "question_id": _id(judgment),
        "model": judgment.model,
        "judge": [judgment.judge, judgment.prompt_name],
        "user_prompt": judgment.user_prompt,
        "judgment": judgment.text,
        "score": -1 if judgment.score is None else judgment.score,
        "turn": judgment.turn,
    }


def game_record(judgment: Judgment) -> dict[str, Any]:
    """A pair's line with one game; the other's winner is "error", FastChat's word for no verdict, and its text null."""
    empty: dict[str, Any] = {}
    for game in GAMES:
        empty |= {f"g{game}_winner": WINNERS[None], f"g{game}_user_prompt": None, f"g{game}_judgment": None}
    return {
        "question_id": _id(judgment),
        "model_1": judgment.model,
        "model_2": judgment.against,
        "judge": [judgment.judge, judgment.prompt_name],
        "turn": judgment.turn,
        **empty,
        **game_fields(judgment),
    }


def game_fields(judgment: Judgment) -> dict[str, Any]:
    """The fields of one game in a pair's line; in both games `model_1` is the model and `model_2` the baseline."""
    game = judgment.game
    return {
        f"g{game}_winner": WINNERS[judgment.score],
        f"g{game}_user_prompt": judgment.user_prompt,
        f"g{game}_judgment": judgment.text,
    }


def _id(judgment: Judgment) -> int | str:
    name = judgment.question_id
    return int(name) if name.isdecimal() and str(int(name)) == name else name


@dataclass(frozen=True)
class Selection:
    """Whose judgments of a file count, None for everybody's, and the rule that reads their verdicts."""

    model: str | None = None
    judge: str | None = None
    parsing: Parsing = "strict"


ALL = Selection()


def selection(model: str | None, judge: str | None, parsing: str) -> Selection:
    """A selection from options; raises `BadInput` for an unknown rule."""
    if parsing not in get_args(Parsing):
        raise BadInput(f"'{parsing}': expected {' or '.join(get_args(Parsing))}", field="--parsing")
    return Selection(model, judge, cast(Parsing, parsing))


def read_judgments(path: str | Path, select: Selection = ALL) -> list[Judgment]:
    """Judgments of one model by one judge; raises `BadInput` naming a row that is malformed or a duplicate."""
    judgments = all_judgments(path, select)
    for who, names in (("models", {one.model for one in judgments}), ("judges", {one.judge for one in judgments})):
        refuse_several(who, names, str(path))
    first: dict[tuple[str, int, int], Judgment] = {}
    for judgment in judgments:
        if (before := first.setdefault(judgment.place, judgment)) is not judgment:
            problem = (
                f"question {judgment.question_id} turn {judgment.turn} is judged twice, first in row {before.row}; "
                "leave out --responses and --data to average repeats as FastChat does"
            )
            raise BadInput(problem, file=str(path), row=judgment.row)
    return judgments


def all_judgments(path: str | Path, select: Selection = ALL) -> list[Judgment]:
    """Every selected judgment, in the file's order; raises `BadInput` for a malformed row, or if none is selected."""
    given = [one for row, record in read_rows(path) for one in parse_judgments(record, str(path), row, select.parsing)]
    for option, wanted, names in (
        ("model", select.model, {one.model for one in given}),
        ("judge", select.judge, {one.judge for one in given}),
    ):
        if wanted is not None and wanted not in names:
            known = first_few(sorted(names), ", ")
            raise BadInput(
                f"no judgment of the {option} '{wanted}'; the file has {known}", file=str(path), field=option
            )
    return [one for one in given if select.model in (None, one.model) and select.judge in (None, one.judge)]


def refuse_several(who: str, names: Collection[str], file: str) -> None:
    """Raises `BadInput` for several `models` or `judges` (`who`) where one is expected."""
    if len(names) > 1:
        option = who.removesuffix("s")
        problem = f"judgments of several {who}: {first_few(sorted(names), ', ')}; name one of them with --{option}"
        raise BadInput(problem, file=file, field=option)


def parse_judgments(record: dict[str, Any], file: str, row: int, parsing: Parsing = "strict") -> list[Judgment]:
    """The judgments on one line: one of a single answer, or one for each game of a pair that has a text."""
    check_text(record, file, row)
    pair = "model_1" in record
    needed: dict[str, tuple[type, ...]] = {"question_id": (int, str), "turn": (int,)}
    for name, kinds in (needed | ({} if pair else {"judgment": (str,)})).items():
        if not isinstance(record.get(name), kinds) or isinstance(record[name], bool):
            problem = f"not a {'pair' if pair else 'single-answer'} judgment: missing or of the wrong type"
            raise BadInput(problem, file=file, row=row, field=name)
    judge = record.get("judge")
    names = [str(part) for part in judge] if isinstance(judge, list) and len(judge) == 2 else ["", ""]

    def judgment(game: int, text: str, prompt: Any) -> Judgment:
        return Judgment(
            question_id=str(record["question_id"]),
            turn=record["turn"],
            judge=names[0],
            prompt_name=names[1],
            user_prompt=str(prompt or ""),
            text=text,
            model=str(record.get("model_1" if pair else "model", "")),
            game=game,
            against=str(record.get("model_2", "")) if pair else "",
            row=row,
            parsing=parsing,
        )

    if not pair:
        return [judgment(0, record["judgment"], record.get("user_prompt"))]
    judgments = []
    for game in GAMES:
        text = record.get(f"g{game}_judgment")
        if text is not None and not isinstance(text, str):
            raise BadInput("not a pair judgment: expected a text", file=file, row=row, field=f"g{game}_judgment")
        if text is not None:
            judgments.append(judgment(game, text, record.get(f"g{game}_user_prompt")))
    return judgments


# Judgments that were made before and are read from a file.


def stored_judgments(path: str | Path, items: Sequence[Item], turns: int, select: Selection = ALL) -> list[Judgment]:
    """The judgments in a FastChat file, all of answers alone or all of pairs.

    Raises `BadInput` naming the first judgment whose question or turn is not in the data file, or whose kind differs
    from that of the first judgment.
    """
    judgments = read_judgments(path, select)
    known = {item.id for item in items}
    for judgment in judgments:
        if judgment.question_id not in known:
            problem = f"question {judgment.question_id} is not in the data file"
            raise BadInput(problem, file=str(path), row=judgment.row, field="question_id")
        if not 1 <= judgment.turn <= turns:
            raise BadInput(f"turn {judgment.turn} of {turns}", file=str(path), row=judgment.row, field="turn")
        if bool(judgment.game) != bool(judgments[0].game):
            problem = "judgments of pairs and of answers alone in one file"
            raise BadInput(problem, file=str(path), row=judgment.row)
    return judgments


class StoredJudge:
    """Returns the stored judgments of the items it is asked about."""

    def __init__(self, judgments: Sequence[Judgment]) -> None:
        self.judgments = list(judgments)

    def __call__(self, answered: Sequence[tuple[Item, object]]) -> list[Judgment]:
        """The stored judgments of these items; the answers do not matter."""
        asked = {item.id for item, _ in answered}
        return [judgment for judgment in self.judgments if judgment.question_id in asked]
