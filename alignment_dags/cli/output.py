"""Output of the verbs: one result on stdout, everything else on stderr."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from itertools import zip_longest
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from alignment.errors import counted
from alignment.progress import MOVING

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")]


@contextmanager
def stdout_kept() -> Iterator[None]:
    """Keeps stdout for results: other output of libraries and child processes goes to stderr."""
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)


def tell(work: Callable[[], dict[str, Any]], as_json: bool, show: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Runs `work` and prints its result, as one JSON object or by `show`; returns the result."""
    with stdout_kept():
        result = work()
    if as_json:
        print(json.dumps(result, ensure_ascii=False, sort_keys=True, allow_nan=False))
    else:
        show(result)
    return result


# Progress on stderr: lines that stay, and one that moves while a stage works.

PAUSE = 15.0
"""Seconds between two moving lines where they do not move, as in a log."""
_moved: dict[str, float] = {"width": 0, "at": 0.0}


def say(line: str) -> None:
    """Prints a line of progress on stderr. One that begins with `MOVING` moves on a terminal; elsewhere it is a line
    like any other, and one of many is printed."""
    moves, text = line.startswith(MOVING), line.removeprefix(MOVING)
    if not is_terminal(sys.stderr):
        if moves and time.monotonic() - _moved["at"] < PAUSE:
            return
        if moves:
            _moved["at"] = time.monotonic()
        print(text, file=sys.stderr, flush=True)
        return
    clear = "\r\x1b[K" if _moved["width"] else ""
    room = shutil.get_terminal_size().columns
    text = text[: room - 1] if moves else wrapped(text, room)
    _moved["width"] = len(text) if moves else 0
    print(clear + painted(text, sys.stderr), end="" if moves else "\n", file=sys.stderr, flush=True)


def wrapped(text: str, room: int) -> str:
    """The text with lines of at most `room`: what goes on stands a little behind where its line begins."""
    lines = []
    for line in text.splitlines():
        lead = line[: len(line) - len(line.lstrip())]
        lines += textwrap.wrap(
            line, room, subsequent_indent=f"{lead}  ", break_long_words=False, break_on_hyphens=False
        ) or [""]
    return "\n".join(lines)


def is_terminal(stream: IO[str]) -> bool:
    """Whether a stream is a terminal that can move its cursor."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


# Colours: on a terminal only, and never with NO_COLOR (https://no-color.org).

COLOURS = {
    32: ("improved", "pass", "passed", "ok", "current", "done"),
    31: ("regressed", "fail", "failed", "FAILED", "bad", "NO", "error", "stopped"),
    33: ("inconclusive", "gated", "stale", "warning", "note", "unknown"),
}
"""ANSI colour to the words that it marks."""
_COLOUR_OF = {word: colour for colour, words in COLOURS.items() for word in words}
_ENDS = re.compile(rf"^(\s*)({'|'.join(_COLOUR_OF)})\b|\b({'|'.join(_COLOUR_OF)})$", re.MULTILINE)


def painted(text: str, stream: IO[str] | None = None) -> str:
    """The text with its words of judgment coloured, where they begin or end a line."""
    if not is_terminal(stream or sys.stdout) or os.environ.get("NO_COLOR"):
        return text

    def paint(found: re.Match[str]) -> str:
        word = found[2] or found[3]
        return f"{found[1] or ''}\x1b[{_COLOUR_OF[word]}m{word}\x1b[0m"

    return _ENDS.sub(paint, text)


def quiet() -> None:
    """Hides messages of libraries and their bars, and shows our own progress on stderr."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # read when it is imported
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    for name in ("alignment", "eval"):
        logging.getLogger(name).setLevel(logging.INFO)


# The output of each verb.

SHOWN_ROWS, SHOWN_NUMBERS = 20, 10


def columns(header: Sequence[str], rows: Sequence[Sequence[object]], room: int | None = None) -> str:
    """Aligned columns of plain text; numbers are given as strings.

    A table that is wider than `room` gets cells of several lines, cut where words and names have a seam. `room` is the
    terminal's width; elsewhere, as in a file or a pipe, a row is a line, however long.
    """
    lines = [[str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(line[index]) for line in lines) for index in range(len(header))]
    if room is None and is_terminal(sys.stdout):
        room = shutil.get_terminal_size().columns
    if room is not None:
        least = [
            max(len(part.rstrip()) for line in lines for part in _parts(line[index])) for index in range(len(header))
        ]
        cut = [sum(len(line[index]) > least[index] for line in lines[1:]) for index in range(len(header))]
        widths = fitted(widths, least, cut, room - 2 * (len(header) - 1))
    shown = []
    for line in lines:
        cells = [_cut(cell, width) for cell, width in zip(line, widths, strict=True)]
        for row in zip_longest(*cells, fillvalue=""):
            shown.append("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return "\n".join(shown)


def fitted(widths: Sequence[int], least: Sequence[int], cut: Sequence[int], room: int) -> list[int]:
    """The widths of columns that have so much room in all. A column gives as much as it can, down to its `least`; first
    one of sentences, which takes most of the room, then those of which the fewest cells are `cut`, and of these the one
    that gives the most."""
    narrowed = list(widths)
    order = sorted(range(len(widths)), key=lambda one: (2 * widths[one] < room, cut[one], least[one] - widths[one]))
    for index in order:
        too_wide = sum(narrowed) - room
        narrowed[index] -= max(0, min(too_wide, widths[index] - least[index]))
    return narrowed


_SEAM = re.compile(r"(?<= )(?=[^ ])")
_SEAM_OF_NAME = re.compile(r"(?<=[/_])|(?<=,)(?=\D)")


def _parts(cell: str) -> list[str]:
    """The pieces that a cell may be cut into: words, or of a name what is joined in it; never within a number. The
    first has the cell's indent."""
    text = cell.lstrip(" ")
    first, *others = (_SEAM if " " in text.strip() else _SEAM_OF_NAME).split(text)
    return [cell[: len(cell) - len(text)] + first, *others]


def _cut(cell: str, width: int) -> list[str]:
    """The lines of a cell that has so much room."""
    lines = [""]
    for part in _parts(cell):
        if lines[-1] and len(lines[-1]) + len(part.rstrip()) > width:
            lines.append("")
        lines[-1] += part
    return [line.rstrip() for line in lines]


def place(address: str) -> str:
    """An address as a person types it: a file of this machine as a path, from the current folder if it lies below."""
    path = address.removeprefix("file://")
    if "://" in path or not path.startswith("/"):
        return address
    with suppress(ValueError, OSError):
        return str(Path(path).relative_to(Path.cwd()))
    return path


def show_fields(result: dict[str, Any]) -> None:
    """Prints every field of a result, one a line."""
    for name, value in result.items():
        print(f"{name}: {value}")


def show_check(result: dict[str, Any]) -> None:
    """Prints the outcome of `align prefs check`."""
    from alignment.data.check import joined_note

    kind = "" if result["kind"] is None else f" ({result['kind']})"
    print(f"{counted(result['rows'], 'row')}, {result['accepted']} accepted{kind}, {result['quarantined']} quarantined")
    for form, count in result["forms"].items():
        print(f"  {count:>6}  rows in the form: {form}")
    for reason, count in sorted(result["reasons"].items(), key=lambda item: -item[1]):
        print(f"  {count:>6}  {reason}")
    for file, told in result["advice"].items() if result["accepted"] else ():  # else the error says it
        print(f"  {place(file)}: {told}")
    if (note := joined_note(result)) is not None:
        print(f"  {note}")
    rows: dict[tuple[str, str], list[int]] = {}
    for row in result["quarantined_rows"]:
        reason = "duplicate" if row["reason"].startswith("duplicate of ") else row["reason"]
        rows.setdefault((row["file"], reason), []).append(row["row"])
    for (file, reason), numbers in list(rows.items())[:SHOWN_ROWS]:
        more = f" and {len(numbers) - SHOWN_NUMBERS} more" if len(numbers) > SHOWN_NUMBERS else ""
        print(f"  {place(file)}: {reason} in row {', '.join(map(str, numbers[:SHOWN_NUMBERS]))}{more}")
    if len(rows) > SHOWN_ROWS or any(len(numbers) > SHOWN_NUMBERS for numbers in rows.values()):
        print("  --json names every row")


LONGEST_SHOWN, IDS_SHOWN = 2000, 12


def show_seen(result: dict[str, Any]) -> None:
    """Prints the outcome of `align prefs show`."""
    for row in result["shown"]:
        scores = f", scores {row['chosen_score']:g} and {row['rejected_score']:g}" if "chosen_score" in row else ""
        label = f", label {str(row['label']).lower()}" if "label" in row else ""
        print(f"{place(row['file'])}, row {row['row']} ({row['form']}{scores}{label}), id {row['row_id']}")
        if row["earlier_answers"]:
            print(f"  earlier answers in the prompt, which do not count: {row['earlier_answers']}")
        if "dropped" in row:
            print(f"  dropped: {row['dropped']}" + (f" ({row['detail']})" if row["detail"] else ""))
        for name, side in row.get("seen", {}).items():
            if name != "rejected":
                _show_text(f"prompt, {counted(len(side['prompt_ids']), 'token')}", side["prompt"], side["prompt_ids"])
            _show_text(
                f"{name}, {counted(len(side['counted_ids']), 'token that counts', 'tokens that count')}",
                side["counted"],
                side["counted_ids"],
            )
        if "seen" not in row:
            for name in ("prompt", "chosen", "rejected", "completion"):
                if name in row:
                    _show_text(name, row[name] if isinstance(row[name], str) else _dialogue(row[name]), [])
        print()
    forms = ", ".join(f"{name}: {count}" for name, count in result["forms"].items())
    print(
        f"{counted(result['records'], 'record')}, {counted(result['rows'], 'row')} ({forms}),"
        f" {result['quarantined']} quarantined"
    )
    if "tokens" not in result:
        print("give --model FOLDER, or a recipe, to see tokens")
        return
    percentiles = list(next(iter(result["tokens"].values()), {}))
    rows = [(name, *(str(length) for length in lengths.values())) for name, lengths in result["tokens"].items()]
    print(columns(("tokens", *(f"{one} %" if one != "100" else "most" for one in percentiles)), rows))
    dropped = ", ".join(f"{reason}: {count}" for reason, count in result["dropped"].items())
    print(
        f"max_length {result['max_length']}, truncation {result['truncation']}:"
        f" {counted(result['truncated'], 'row is', 'rows are')} cut,"
        f" {sum(result['dropped'].values())} dropped{f' ({dropped})' if dropped else ''}"
    )


def _show_text(title: str, text: str, ids: Sequence[int]) -> None:
    more = f"… and {len(text) - LONGEST_SHOWN} characters more" if len(text) > LONGEST_SHOWN else ""
    print(f"  {title}:")
    print("\n".join(f"    | {line}" for line in f"{text[:LONGEST_SHOWN]}{more}".split("\n")))
    if ids:
        print(f"    ids {' '.join(map(str, ids[:IDS_SHOWN]))}{' …' if len(ids) > IDS_SHOWN else ''}")


def _dialogue(messages: Sequence[dict[str, str]]) -> str:
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)


def show_backfill(result: dict[str, Any]) -> None:
    """Prints the outcome of `align backfill`."""
    stages = list(result["made"])
    rows = [(stage, *(str(len(result[how][stage])) for how in ("made", "current", "behind"))) for stage in stages]
    print(columns(("stage", "made", "were current", "still behind"), rows))
    for stage in stages:
        for shard in result["behind"][stage][:SHOWN_ROWS]:
            print(f"  behind: {stage} {shard}")
    for name in result["withdrawn"]:
        if name in result["by_hand"]:
            print(f"left out, because it was withdrawn: {name}")
            continue
        stays = f"its text stays until `align prefs withdraw {result['recipe']} --shard {name}`"
        print(f"left out, because the source no longer has it: {name} ({stays})")
    for failure in result["failures"]:
        print(f"failed: {failure}")
    print(f"{result['recipe']}: {counted(len(result['shards']), 'shard')} in {result['seconds']} s")


def show_score(result: dict[str, Any]) -> None:
    """Prints the outcome of `align score`."""
    print(f"{result['suite']}: {counted(result['n'], 'item')}")
    for what in ("missing", "failed"):
        if result[what]:
            told = counted(len(result[what]), f"more is {what} and does", f"more are {what} and do")
            print(f"  {told} not count; --json names them")
    if result["empty"]:
        forms = ("answer is empty and counts as it is", "answers are empty and count as they are")
        print(f"  {counted(len(result['empty']), *forms)}; --json names them")
    if result["left_out"]:
        print(f"  not scored, as no means over items where more is better: {', '.join(result['left_out'])}")
    rows = [
        (name, f"{m['value']:.4f}", "-" if m["stderr"] is None else f"{m['stderr']:.5f}")
        for name, m in result["metrics"].items()
    ]
    if rows:
        print(columns(("metric", "value", "stderr"), rows))
    else:
        print(f"  no scores: a judge scores {result['suite']}; give --judgments, which `align judge` writes")
    for one in result.get("models", ()):
        whose = f"{one['model']}: " if len(result["models"]) > 1 else ""
        if one["unparsable"]:
            lost = counted(one["unparsable"], "judgment holds no verdict and does", "judgments hold no verdict and do")
            print(f"{whose}{lost} not count")
        for metric, how in one["method"].items():
            print(f"{whose}{metric}: {how}")
        for note in one["notes"]:
            print(f"{whose}{note}")
        for name, value in one.get("rules", {}).items():
            print(f"our rules against these labels, {name}: {'-' if value is None else f'{value:.4f}'}")
    print(f"samples: {result['samples']}")


def show_judged(result: dict[str, Any]) -> None:
    """Prints the outcome of `align judge`."""
    print(f"{result['suite']}: {counted(result['judgments'], 'judgment')} of {counted(result['n'], 'answer')}")
    for what, one, many in (
        ("missing", "item has no answer and does", "items have no answer and do"),
        ("failed", "answer is not whole and does", "answers are not whole and do"),
        ("unparsable", "judgment holds no verdict and does", "judgments hold no verdict and do"),
        ("not_judged", "was not judged and does", "were not judged and do"),
    ):
        if result[what]:
            print(f"  {counted(len(result[what]), one, many)} not count; --json names them")
    rows = [
        (name, f"{m['value']:.4f}", "-" if m["stderr"] is None else f"{m['stderr']:.5f}", _ends(result, name))
        for name, m in result["metrics"].items()
    ]
    print(columns(("metric", "value", "stderr", "95 % interval"), rows))
    bill = result["judge"]
    cost = "" if bill["usd"] is None else f", {bill['usd']:.4f} USD"
    print(f"asked now: {bill['asked']}; in all {bill['input_tokens']} + {bill['output_tokens']} tokens{cost}")
    print(f"judgments: {result['out']}")


def _ends(result: dict[str, Any], metric: str) -> str:
    ends = result["intervals"].get(metric)
    return "" if ends is None else f"[{ends[0]:.4f}, {ends[1]:.4f}]"


def interval(ci95: Sequence[float] | None) -> str:
    """A 95 % interval; a dash if there were too few items."""
    return "-" if ci95 is None else f"[{ci95[0]:+.4f}, {ci95[1]:+.4f}]"


def comparison_row(metric: str, comparison: dict[str, Any]) -> tuple[str, ...]:
    """The cells of one metric's comparison."""
    return (
        metric,
        str(comparison["n"]),
        f"{comparison['baseline']:.4f}",
        f"{comparison['candidate']:.4f}",
        f"{comparison['difference']:+.4f}",
        interval(comparison["ci95"]),
        comparison["verdict"],
    )


def show_comparison(result: dict[str, Any]) -> None:
    """Prints the outcome of `align compare`."""
    _show_compared(result)
    for metric, comparison in result.items():
        if lost := comparison["missing"]:
            sides = ", ".join(
                f"{comparison[f'missing_{side}']} in the {side} alone" for side in ("baseline", "candidate")
            )
            named = ", ".join(comparison["missing_ids"][:SHOWN_ROWS]) + (", …" if lost > SHOWN_ROWS else "")
            print(
                f"{metric}: {counted(lost, 'item has', 'items have')} no value on both sides and"
                f" {'does' if lost == 1 else 'do'} not count (lacking {sides}): {named}"
            )


def _show_compared(result: dict[str, Any]) -> None:
    header = ("metric", "n", "baseline", "candidate", "difference", "95 % interval", "margin", "verdict")
    rows = [comparison_row(metric, comparison) for metric, comparison in result.items()]
    margins = [f"±{comparison['margin']:g}" for comparison in result.values()]
    print(painted(columns(header, [(*row[:-1], margin, row[-1]) for row, margin in zip(rows, margins, strict=True)])))


def show_diff(result: dict[str, Any]) -> None:
    """Prints the outcome of `align diff`."""
    header = ("", *result["sides"])
    for title in ("settings", "code"):
        absent = "by default" if title == "settings" else "-"
        rows = [(f"  {name}", *(_value(value, absent) for value in values)) for name, values in result[title].items()]
        print(columns((title, *header[1:]), rows) if rows else f"{title}: the same")
    shards = result["shards"]
    parts = {"only in the first": "first_alone", "only in the second": "second_alone", "other rows": "changed"}
    told = [f"{words}: {', '.join(shards[name][:SHOWN_ROWS])}" for words, name in parts.items() if shards[name]]
    print("\n  ".join([f"data: {counted(shards['same'], 'shard is', 'shards are')} the same", *told]))
    rows = [
        (f"  {name}", *(str(digest or "-")[:12] for digest in pair), "" if len(set(pair)) > 1 else "the same")
        for name, pair in result["checkpoints"].items()
    ]
    print(columns(("checkpoints", *header[1:], ""), rows))
    if result["settings"] and len(set(result["checkpoints"]["policy"])) == 1:
        print("note: both have the same policy: a recipe that was changed has not run since, or it changed nothing")
    rows = [(f"  {stage}", *map(_taken, sides)) for stage, sides in result["taken"].items()]
    print(columns(("taken", *header[1:]), rows))
    if result["metrics"]:
        _show_compared(result["metrics"])
    else:
        print("metrics: none that both were measured on")


def _taken(told: dict[str, float] | None) -> str:
    """Seconds and GPU-seconds; - for a stage that a side has not."""
    return "-" if told is None else f"{told['seconds']:,.1f} s, {told['gpu_seconds']:,.0f} GPU-s"


def _value(value: object, absent: str) -> str:
    return absent if value is None else json.dumps(value, ensure_ascii=False)


def show_nights(result: dict[str, Any]) -> None:
    """Prints the latest nights of a recipe."""
    if not result["nights"]:
        print(f"{result['recipe']}: no night yet (schedule: {result['schedule'] or 'none in the recipe'})")
    for night in result["nights"]:
        version = f" (version {night['version']})" if night["version"] else ""
        print(f"{night['scheduled_at']}  {night['outcome']}{version}: {night['reason']}")
        for shard, why in list(night["left_out"].items())[:SHOWN_ROWS]:
            print(f"    left out {shard}: {why}")
        if night["took"]:
            print(f"    {night['took']}")
        for warning in filter(None, (night["alias"], night["judge"], *night["elsewhere"])):
            print(f"    {warning}")
    for path, why in result["unreadable"].items():
        print(f"{path}: {why}")
