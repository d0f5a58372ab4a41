from __future__ import annotations

from pathlib import Path

import pytest

from eval.suites import MT_BENCH
from eval.suites.items import read_items


@pytest.mark.real_data
def test_every_category_is_answered_at_fastchat_s_temperature(real_data: Path) -> None:
    assert MT_BENCH.temperature_of is not None
    items = read_items(MT_BENCH, real_data / "mt_bench/question.jsonl")
    assert {item.fields["category"]: MT_BENCH.temperature_of(item) for item in items} == {
        "writing": 0.7,
        "roleplay": 0.7,
        "extraction": 0.0,
        "math": 0.0,
        "coding": 0.0,
        "reasoning": 0.0,
        "stem": 0.1,
        "humanities": 0.1,
    }
