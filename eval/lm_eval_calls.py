"""How lm-eval is called: without its chatter and downloads, and with nothing left to chance."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def seeded() -> Iterator[None]:
    """IFEval draws a random letter for one item and detects languages with a sampler; both are pinned here."""
    from langdetect import DetectorFactory

    state, seed = random.getstate(), DetectorFactory.seed
    random.seed(0)
    DetectorFactory.seed = 0
    try:
        yield
    finally:
        random.setstate(state)
        DetectorFactory.seed = seed


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, no chatter, and no download: IFEval's module fetches sentence data when it is imported."""
    import datasets
    import nltk

    logger = logging.getLogger("lm_eval")
    level, download, bars = logger.level, nltk.download, not datasets.are_progress_bars_disabled()
    logger.setLevel(logging.CRITICAL)  # IFEval says "error", with the text, of every answer whose language has no name
    nltk.download = lambda *_, **__: False
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        nltk.download = download
        if bars:
            datasets.enable_progress_bars()


def told(error: BaseException) -> str:
    """What lies at the bottom of an error of another library's, in one line."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return f"{type(cause).__name__}: {' '.join(str(cause).split())[:300]}"
