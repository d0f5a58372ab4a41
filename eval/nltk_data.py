"""NLTK's data beside a suite's data file: a folder of evaluation data can bring its own sentence splitter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def nltk_data_beside(data: str | Path | None) -> Iterator[None]:
    """Meanwhile NLTK also looks in `nltk_data` next to the data file, and next to the folder it lies in.

    What NLTK_DATA and NLTK's own places hold comes first. URLs have no such neighbours.
    """
    if data is None or "://" in str(data):
        yield
        return
    import nltk

    folder = Path(data).resolve().parent
    beside = [str(place) for place in (folder / "nltk_data", folder.parent / "nltk_data") if place.is_dir()]
    nltk.data.path.extend(beside)
    try:
        yield
    finally:
        for place in beside:
            nltk.data.path.remove(place)
