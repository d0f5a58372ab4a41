"""What a certificate says of one metric."""

from __future__ import annotations

import pytest

from assets.certificate import Certified


@pytest.mark.parametrize(
    ("metric", "width", "interval", "told"),
    [
        ("gsm8k/exact_match,strict-match", 1.0, (0.81, 1.10), (0.81, 1.0)),
        ("mt_bench/average", 9.0, (0.5, 10.17), (1.0, 10.0)),
        ("mt_bench/average", 9.0, (7.19, 9.17), (7.19, 9.17)),
        ("mt_bench/win_rate", 1.0, (-0.1, 0.4), (0.0, 0.4)),
        ("my_task/acc", 1.0, (-0.2, 1.2), (0.0, 1.0)),
        ("preferences/margin", None, (-0.2, 4.2), (-0.2, 4.2)),
        ("mt_bench/average", None, (7.0, 10.2), (7.0, 10.2)),
        ("gsm8k/exact_match,strict-match", 1.0, (None, None), (None, None)),
    ],
)
def test_one_more_run_lies_within_the_metrics_scale_where_it_has_one(
    metric: str,
    width: float | None,
    interval: tuple[float | None, float | None],
    told: tuple[float | None, float | None],
) -> None:
    values = {"values": {0: 0.9}, "mean": 0.9, "deviation": None, "own": 0.9, "noise": "unknown"}
    one = Certified.model_validate(
        {"metric": metric, "low": interval[0], "high": interval[1], "width": width, **values}
    )
    assert one.ends == told
