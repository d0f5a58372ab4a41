"""What a person did that we cannot work with, said in one line."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

from alignment.address import shown, whole


class BadInput(ValueError):
    """Input that a person gave and has to mend; the command line prints it as one line and exits with 2.

    `file`, `row` (1-based source line or record number) and `field` say where it is. No address in it shows a secret.
    """

    def __init__(
        self,
        message: str,
        *,
        file: str | None = None,
        row: int | None = None,
        field: str | None = None,
    ) -> None:
        message, file = " ".join(filter(None, map(str.strip, shown(message).splitlines()))), file and shown(file)
        where = ", ".join(
            part
            for part in (
                file,
                None if row is None else f"row {row}",
                None if field is None else f"field '{field}'",
            )
            if part
        )
        super().__init__(f"{where}: {message}" if where else message)
        self.message = message
        self.file = file
        self.row = row
        self.field = field


@contextmanager
def named_in(field: str) -> Iterator[None]:
    """Adds the field of a recipe that names a path to an error which names that path alone."""
    try:
        yield
    except BadInput as error:
        if type(error) is not BadInput or error.file is None or error.row is not None or error.field is not None:
            raise
        raise BadInput(error.message, file=error.file, field=field) from error


def require_utf8(name: str) -> None:
    """Raises `BadInput` for the name of a file or folder whose bytes are not UTF-8: no record could hold it."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        written = name.encode("utf-8", "backslashreplace").decode("utf-8")
        raise BadInput("the name is not UTF-8; rename it", file=written) from None


# What can be wrong with an artifact that somebody asks for.


class MissingArtifact(LookupError):
    """No committed artifact where one was expected."""


class CorruptArtifact(RuntimeError):
    """A committed artifact whose files are not what its commit record says."""


class NewerFormat(CorruptArtifact):
    """A record that a newer version of alignment-dags wrote, in a form that this one does not know."""


class ErasedArtifact(MissingArtifact):
    """An artifact whose commit record stands while files of it were erased on purpose."""


# What is behind an error. Causes may go round in a circle: `raise error from error` makes one.


def causes(error: BaseException) -> list[BaseException]:
    """An error and its causes, the first one last, each once."""
    found = [error]
    while (cause := found[-1].__cause__) is not None and not any(cause is one for one in found):
        found.append(cause)
    return found


def chain(error: BaseException) -> Iterator[BaseException]:
    """An error, its causes, and what each of them came in the middle of, each once."""
    left: list[BaseException | None] = [error]
    met: list[BaseException] = []
    while left:
        one = left.pop(0)
        if one is not None and not any(one is other for other in met):
            met.append(one)
            left += [one.__cause__, one.__context__]
            yield one


# An error of a library, and a long list, in one line for a person.

LONGEST = 1_500
"""Characters of an error that are shown: its beginning says where, its end what to do, and a value that somebody wrote
in between may be a whole file."""


def one_line(told: object) -> str:
    """An error or a text in one line without its middle, if it is long; an error without a text is told by its kind."""
    line = " ".join(str(told).split()) or (type(told).__name__ if isinstance(told, BaseException) else "")
    return line if len(line) <= LONGEST else f"{line[: LONGEST * 2 // 3]} … {line[-LONGEST // 3 :]}"


NAMED = 5


def first_few(names: Sequence[str], between: str = ", ") -> str:
    """The first few names, and how many more there are."""
    more = len(names) - NAMED
    return between.join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


# A number and what it counts.


def counted(count: float, one: str, many: str | None = None) -> str:
    """A number with its noun, and a verb where there is one: `1 shard`, `1,200 shards`; `many` is `one` with an s."""
    number = f"{count:,.0f}" if count == round(count) else f"{count:g}"
    return f"{number} {one if count == 1 else f'{one}s' if many is None else many}"


def be(count: float) -> str:
    """The verb behind a number of things."""
    return "is" if count == 1 else "are"


# A word that a person mistyped.

SIMILAR = 0.6
"""Share of letters in common from which a known word counts as meant."""
LONGEST_WORD = 200
"""Letters above which nothing is compared: a file that was pasted in place of a name would take minutes."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of an error that names the known word which is most like `word`; empty if none is."""
    if len(word) > LONGEST_WORD:
        return ""
    nearest = get_close_matches(word, list(known), n=1, cutoff=SIMILAR)
    return f"; did you mean {nearest[0]}?" if nearest else ""


# A path that a person wrote and that is not there.

MOST_NAMES = 4_000
"""Names of a folder that are compared with the missing one; a folder of data may hold millions."""


def no_such(what: str, path: str | Path) -> str:
    """What an error says of a missing path or bare address, with the name in the same local folder that was meant.

    Servers say of a file that it is missing also where a query or user that opens it is out of date.
    """
    path = str(path)
    if whole(path) != path:
        return f"no such {what}, or the query or user that opens it is out of date"
    return f"no such {what}{did_you_mean_beside(path)}"


def did_you_mean_beside(path: str) -> str:
    """`did_you_mean` of a local path, among the names in its folder; empty for a URL and an unreadable folder."""
    if "://" in path or "::" in path:
        return ""
    try:
        place = Path(path).expanduser()
        with os.scandir(place.parent) as entries:
            names = sorted(entry.name for entry in islice(entries, MOST_NAMES))
    except (OSError, RuntimeError, ValueError):  # no folder, no such user, no path
        return ""

    def stem(name: str) -> str:
        return name.partition(".")[0]

    names = [
        name
        for name in names
        if name != place.name and not name.startswith(".") and name.isprintable()
        # two names are not alike by their suffix alone
        if did_you_mean(stem(place.name), [stem(name)])
    ]
    return did_you_mean(place.name, names)
