"""What `align plan` shows a person: a line a stage, and below it how each number was reached."""

from __future__ import annotations

from typing import Any

from alignment_dags.cli.tables import columns

NUMBERS = {"memory_gib": "memory", "slot_seconds": "time", "cost": "cost"}


def show_plan(result: dict[str, Any]) -> None:
    rows = [
        (
            one["stage"],
            one["pool"] or "-",
            str(one["current"]),
            str(one["to_make"]),
            _told(one, "memory_gib", "{:.2f} GiB"),
            "-" if one["pool"] is None else {True: "yes", False: "NO", None: "unknown"}[one["fits"]],
            _told(one, "slot_seconds", "{:.0f} s"),
            _told(one, "cost", "{:.2f}"),
        )
        for one in result["stages"]
    ]
    print(columns(("stage", "pool", "there", "to make", "memory a device", "fits", "time", "cost"), rows))
    for one in result["stages"]:
        if one["pool"] is not None and one["to_make"]:
            print(f"{one['stage']}:")
            for name, words in NUMBERS.items():
                print(f"  {words}: {one[name]['how']}")
    for stage in result["too_large"]:
        print(f"{stage} does not fit the devices of its pool")


def _told(one: dict[str, Any], name: str, form: str) -> str:
    value = one[name]["value"]
    if value is not None:
        return form.format(value)
    return "-" if one["pool"] is None and name != "slot_seconds" else "unknown"
