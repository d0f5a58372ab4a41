"""The asset graph of every shipped recipe as text, to be read in a review: `python -m tests.graph` writes it anew."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

RECORD = Path(__file__).with_suffix(".txt")


def lines_of(recipe_file: Path) -> Iterator[str]:
    """A line an asset (what it needs, kinds, pool, partitions, automation), job, schedule and sensor."""
    from alignment.recipe import load_recipe
    from alignment_dags.definitions import build_definitions

    recipe = load_recipe(recipe_file)
    definitions = build_definitions([recipe])
    yield f"# {recipe.name}"
    for asset in definitions.assets or ():
        for spec in asset.specs:  # type: ignore[union-attr]
            facts = {
                "kinds": " ".join(sorted(spec.kinds)),
                "pool": asset.op.pool,  # type: ignore[union-attr]
                "partitions": spec.partitions_def and spec.partitions_def.name,
                "automatic": "yes" if spec.automation_condition else None,
            }
            told = "; ".join(f"{name}: {fact}" for name, fact in facts.items() if fact)
            needs = sorted(short(dep.asset_key.path) for dep in spec.deps)
            yield f"asset {short(spec.key.path)} ({told})" + "".join(f"\n    needs {name}" for name in needs)
    repository = definitions.get_repository_def()
    for job in sorted(repository.get_all_jobs(), key=lambda job: job.name):
        if not job.name.startswith("__"):
            keys = sorted(short(key.path) for key in job.asset_layer.executable_asset_keys)
            yield f"job {job.name}" + "".join(f"\n    makes {name}" for name in keys)
    yield from (f"schedule {one.name}: {one.cron_schedule}" for one in repository.schedule_defs)
    yield from sorted(f"sensor {sensor.name}" for sensor in repository.sensor_defs)
    yield ""


def short(path: list[str] | tuple[str, ...]) -> str:
    """An asset's name without the recipe's."""
    return "/".join(path[1:])


@cache
def graphs() -> str:
    from resources.home import PROJECT

    files = sorted((PROJECT / "recipes").glob("*.yaml"))
    return "\n".join(line for file in files if file.stem != "pools" for line in lines_of(file))


if __name__ == "__main__":
    RECORD.write_text(graphs(), encoding="utf-8")
    sys.exit(0)
