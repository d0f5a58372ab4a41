"""GSM8K: grade-school maths word problems (Cobbe et al. 2021), by lm-eval's own prompt and scorer."""

from __future__ import annotations

from eval.suites.suite import StockTask, Suite

GSM8K = Suite(
    name="gsm8k",
    title="GSM8K",
    fields={"question": str, "answer": str},
    id_field=None,
    metrics=("exact_match,strict-match", "exact_match,flexible-extract"),
    task=StockTask(name="gsm8k", yaml="gsm8k/gsm8k.yaml", split="test", few_shot_split="train", subset="main"),
)
