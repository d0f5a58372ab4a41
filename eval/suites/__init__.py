"""The suites, by name."""

from collections.abc import Sequence

from alignment.errors import BadInput, named_in
from alignment.recipe.evaluation import Evals, section_of
from alignment.stages.stage import SourceFile
from eval.suites.catalogue import ALPACA_EVAL, ARENA_HARD, GSM8K, HARMLESS, IFEVAL, MT_BENCH
from eval.suites.ifbench import IFBENCH
from eval.suites.lm_eval_tasks import stock_suite
from eval.suites.math import MATH
from eval.suites.own_tasks import own_suite, pin_tasks
from eval.suites.reward_bench import REWARD_BENCH_2
from eval.suites.suite import Item, StockTask, Suite, SuiteSpec
from eval.suites.xstest import XSTEST

OWN = (GSM8K, IFEVAL, IFBENCH, MT_BENCH, ALPACA_EVAL, ARENA_HARD, HARMLESS, XSTEST, MATH, REWARD_BENCH_2)
SUITES = {suite.name: suite for suite in OWN}


def suite_named(name: str, tasks: Sequence[SourceFile] = ()) -> Suite:
    """The suite of that name: one of ours, any task of lm-eval, or one of the pinned `tasks` of an own folder. Raises
    `BadInput` for an unknown name."""
    if tasks:
        return own_suite(name, tuple(tasks))
    if name in SUITES:
        return SUITES[name]
    try:
        return stock_suite(name)
    except BadInput as error:
        raise BadInput(f"{error}; suites with a section of their own are {', '.join(SUITES)}") from None


def suite_of(evals: Evals, name: str) -> Suite:
    """The suite of that name in a recipe's `evals`, read from its folder of own tasks (`include_path`) where it names
    one."""
    suite = evals.selected()[name]
    folder = getattr(suite, "include_path", None)
    with named_in(f"{section_of(name, suite)}.include_path"):
        tasks = pin_tasks(folder) if folder else ()
    return suite_named(name, tasks)


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
    "pin_tasks",
    "suite_named",
    "suite_of",
]
