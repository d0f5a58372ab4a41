"""Stage `sweep_report`: all points of a sweep in one table and one picture, and the point that was picked."""

from __future__ import annotations

import json

from alignment.digest import json_digest
from alignment.stages.stage import Context, Result, Stage
from eval.gate.sweep import SweepRequest, SweepSummary, read_choice
from eval.report.pictures import sweep_png

SWEEP_FILE = "sweep.json"
PICTURE_FILE = "sweep.png"


def run(request: SweepRequest, context: Context) -> Result:
    """Writes sweep.json and sweep.png; the digest is of the statistics and the choice."""
    choice = read_choice(context.store, request)
    plain = choice.model_dump(mode="json")
    (context.out / SWEEP_FILE).write_text(json.dumps(plain, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (context.out / PICTURE_FILE).write_bytes(sweep_png(choice))
    return Result(json_digest(plain), SweepSummary(**plain))


STAGE: Stage[SweepRequest] = Stage(name="sweep_report", code_version=1, request=SweepRequest, run=run)
