"""AlpacaEval: instructions whose answers are judged beside a baseline's (Li et al. 2023), in its published form."""

from __future__ import annotations

from typing import Any

from eval.suites.suite import Suite


def alpaca_record(record: dict[str, Any]) -> dict[str, Any]:
    """The instruction is the only turn; the baseline's `output` that comes with it stays beside it."""
    return record | {"turns": [record.get("instruction")]}


ALPACA_EVAL = Suite(
    name="alpaca_eval",
    title="AlpacaEval",
    fields={"instruction": str, "turns": list},
    id_field=None,
    metrics=("win_rate", "length_controlled_win_rate"),
    main="length_controlled_win_rate",
    linearised=("length_controlled_win_rate",),
    task=None,
    prepare=alpaca_record,
)
