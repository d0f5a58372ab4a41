"""What a person did that we cannot work with, said in one line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches

from alignment.address import shown


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
