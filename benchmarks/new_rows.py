"""What it costs to measure a champion on a shard that it has mostly scored before: CPU and wall seconds of the stage.

    python -m benchmarks.new_rows                          # 10,000 rows, of which 100 are new to the cache

The embedded micro model is the start checkpoint, and a policy that was trained on 200 rows the champion. The shard's
rows are scored under both first, all but `--unknown`; then the stage `new_rows` takes the whole shard, several times,
each time with other rows that the champion has not scored. Reading, look-ups and the file are in the seconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from alignment.recipe import Recipe, parse_recipe
from alignment.stages import execute
from alignment.store import Artifact, Ref, Store
from alignment_dags.run.workspace import Workspace
from assets.building.upstream import Upstream
from assets.reference_logprobs import scoring
from eval.stages.new_rows import STAGE, NewRowsRequest
from eval.summaries import NewRowsSummary
from resources.pools import load_pools

TRAINED = 200


def write(path: Path, name: str, numbers: range) -> None:
    rows = (
        {"prompt": f"say the {name} number {n}.", "chosen": f"it is {n}, and no other.", "rejected": "no."}
        for n in numbers
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def recipe_of(files: list[Path]) -> Recipe:
    sections: dict[str, Any] = {
        "name": "bench",
        "base_model": {"embedded": "micro"},
        "sft": {"adopt": {"embedded": "micro"}},
        "preferences": {"files": [str(file) for file in files], "settle_seconds": 0},
        "held_out_fraction": 0.1,
        "tokens": {"max_length": 128},
        "reference": {"precision": "float32"},
        "optimise": {"method": "dpo", "precision": "float32"},
    }
    return parse_recipe(sections, "bench", {})


def make(store: Store, files: list[Path], until: str) -> Upstream:
    """The recipe over these files, made up to and with the node `until`."""
    workspace = Workspace(recipe_of(files), load_pools(), open_store=lambda: store)
    for node in workspace.nodes:
        for shard in workspace.upstream().shards(workspace.recipe) if node.partitioned else [None]:
            made = execute(node.stage, node.request(workspace.upstream(), shard), store)
            store.write_ref(Ref(artifact=made.artifact, mlflow_run_id="none"), "bench", node.name, shard)
        if node.name == until:
            break
    return workspace.upstream()


def measure(
    store: Store, champion: Artifact, known: Artifact, manifest: Artifact
) -> tuple[float, float, NewRowsSummary]:
    """CPU and wall seconds of the stage over a whole manifest, and what it says."""
    settings = scoring(recipe_of([])) | {"quantise": None}
    request = NewRowsRequest(checkpoint=champion, manifest=manifest, known=known, max_rows=1_000_000, **settings)
    cpu, began = time.process_time(), time.perf_counter()
    commit = execute(STAGE, request, store)
    return time.process_time() - cpu, time.perf_counter() - began, NewRowsSummary.of(commit)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--unknown", type=int, default=100, help="rows of the shard that the champion has not scored")
    parser.add_argument("--times", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        store = Store(str(folder / "store"))
        old, new = folder / "old.jsonl", folder / "new.jsonl"
        write(old, "old", range(TRAINED))
        upstream = make(store, [old], "policy_checkpoint")
        champion, known = upstream("policy_checkpoint"), upstream("preference_manifest")
        seconds: list[tuple[float, float]] = []
        for turn in range(given.times + 1):
            first = turn * given.unknown
            write(new, "new", range(first, first + given.rows))
            manifest = make(store, [old, new], "preference_manifest")("preference_manifest")
            cpu, wall, told = measure(store, champion, known, manifest)
            print(
                f"{told.measured:,} rows, {told.cache_hits:,} sequences known, {told.scored:,} scored:"
                f" {cpu:.2f} CPU s, {wall:.2f} s",
                flush=True,
            )
            if turn:  # the first fills the cache
                seconds.append((cpu, wall))
        cpus, walls = zip(*seconds, strict=True)
        print(f"median of {len(cpus)}: {statistics.median(cpus):.2f} CPU s, {statistics.median(walls):.2f} s")


if __name__ == "__main__":
    main()
