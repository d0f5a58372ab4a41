"""IFEval: instructions whose following can be verified by a program (Zhou et al. 2023), by lm-eval's own scorer."""

from __future__ import annotations

from eval.suites.suite import StockTask, Suite

IFEVAL = Suite(
    name="ifeval",
    title="IFEval",
    fields={"key": int, "prompt": str, "instruction_id_list": list, "kwargs": list},
    id_field="key",
    metrics=(
        "prompt_level_strict_acc",
        "inst_level_strict_acc",
        "prompt_level_loose_acc",
        "inst_level_loose_acc",
    ),
    task=StockTask(name="ifeval", yaml="ifeval/ifeval.yaml", split="train"),
)
