"""The suites, by name."""

from alignment.errors import BadInput
from eval.suites.catalogue import ALPACA_EVAL, ARENA_HARD, GSM8K, HARMLESS, IFEVAL, MT_BENCH
from eval.suites.lm_eval_tasks import stock_suite
from eval.suites.math import MATH
from eval.suites.suite import Item, StockTask, Suite, SuiteSpec
from eval.suites.xstest import XSTEST

SUITES = {suite.name: suite for suite in (GSM8K, IFEVAL, MT_BENCH, ALPACA_EVAL, ARENA_HARD, HARMLESS, XSTEST, MATH)}


def suite_named(name: str) -> Suite:
    """The suite of that name: one of ours, or any task of lm-eval. Raises `BadInput` for an unknown name."""
    if name in SUITES:
        return SUITES[name]
    try:
        return stock_suite(name)
    except BadInput as error:
        raise BadInput(f"{error}; suites with a section of their own are {', '.join(SUITES)}") from None


__all__ = [
    "ALPACA_EVAL",
    "ARENA_HARD",
    "GSM8K",
    "HARMLESS",
    "IFEVAL",
    "MT_BENCH",
    "SUITES",
    "Item",
    "StockTask",
    "Suite",
    "SuiteSpec",
    "suite_named",
]
