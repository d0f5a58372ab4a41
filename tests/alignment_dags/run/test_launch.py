"""Stretches of shards: what is behind is covered, and nothing else; and what steps share with their server."""

from __future__ import annotations

import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from alignment_dags.definitions import PRELOADED
from alignment_dags.run.launch import stretches


@given(st.lists(st.booleans(), max_size=30), st.integers(1, 7))
def test_stretches_cover_exactly_the_wanted_shards_in_order(behind: list[bool], most: int) -> None:
    order = [f"shard-{index}" for index in range(len(behind))]
    wanted = {shard for shard, is_behind in zip(order, behind, strict=True) if is_behind}
    covered: list[str] = []
    for first, last in stretches(order, wanted, most):
        stretch = order[order.index(first) : order.index(last) + 1]
        assert 1 <= len(stretch) <= most
        covered += stretch
    assert covered == [shard for shard in order if shard in wanted]


FORKED = f"""
import gc, multiprocessing
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["json.tool", "{PRELOADED[-1]}"])
with context.Pool(1) as pool:
    print(pool.apply(gc.get_freeze_count))
"""


def test_a_step_collects_no_garbage_among_what_its_server_has_imported() -> None:
    told = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, check=False)
    assert told.returncode == 0 and int(told.stdout) > 1000, told.stderr
