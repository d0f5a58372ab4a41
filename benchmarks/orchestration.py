"""What it takes to bring six stages about, beside their own work: in a run that finds all made, and in a launcher.

    python -m benchmarks.orchestration --run
    python -m benchmarks.orchestration --launchers step torchrun ray

With --run a small variant of the quickstart is made, the six stages' refs are removed, and `align run` is started
again: every one of them runs as a Dagster step, finds its artifact, and reports it. The same run where nothing is to do
is taken off. Otherwise each launcher makes six small artifacts, one after the other; the stage's own seconds, as its
commit records them, are taken off, and so is what Python needs for the imports of a program alone. `ray` needs
RAY_ADDRESS. CPU seconds are those of all processes that were started and have ended, without a Ray job's.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import yaml

from alignment.data.files import pin_file
from alignment.stages.preference_shard import STAGE, ShardRequest
from alignment.store import Commit, Store
from resources.home import PROJECT
from resources.launchers import Launch, launcher_for
from resources.pools import Pool

STAGES = (
    "sft_checkpoint",
    "reference_logprobs",
    "policy_checkpoint",
    "sft_responses",
    "policy_responses",
    "policy_divergence",
)
PROGRAMS = {
    "step": [],
    "torchrun": ["-c", "import torch.distributed.run"],
    "ray": [],
}
"""Arguments of a Python that imports what a launcher starts beside the stage's program, and does nothing."""


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds, those of children that have ended included."""

    def cpu() -> float:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(one.ru_utime + one.ru_stime for one in used)

    began, before = time.perf_counter(), cpu()
    work()
    return time.perf_counter() - began, cpu() - before


def python(*arguments: str) -> tuple[float, float]:
    """Seconds of a Python with these arguments."""
    return timed(lambda: subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True))


def of_a_run() -> None:
    """Prints the seconds of a run whose six stages are all made, and of the same run once no stage runs."""
    with tempfile.TemporaryDirectory() as folder:
        where = {"ALIGN_HOME": f"{folder}/align", "DAGSTER_HOME": f"{folder}/dagster"}
        recipe = yaml.safe_load((PROJECT / "recipes" / "quickstart.yaml").read_text(encoding="utf-8"))
        recipe["sft"] |= {"epochs": 0.02, "eval_steps": 1000}
        recipe["optimise"] |= {"epochs": 0.02}
        recipe |= {"gate": "none"}
        for suite in ("gsm8k", "ifeval", "mt_bench"):
            recipe["evals"][suite] |= {"limit": 4}
        path = Path(folder, "recipe.yaml")
        path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
        command = [sys.executable, "-c", "from alignment_dags.cli import main; main()", "run", str(path), "--json"]

        def run() -> None:
            subprocess.run(command, env=os.environ | where, check=True, stdout=subprocess.DEVNULL)

        run()
        refs = [ref for ref in Path(folder, "align").rglob("refs/quickstart/*") if ref.stem in STAGES]
        for ref in refs:
            shutil.rmtree(ref) if ref.is_dir() else ref.unlink()
        (wall, cpu), (idle_wall, idle_cpu) = timed(run), timed(run)
        of_six = {"wall": round(wall - idle_wall, 2), "cpu": round(cpu - idle_cpu, 2)}
        print(
            json.dumps(
                {
                    "what": "six stages found",
                    "load": round(os.getloadavg()[0], 1),
                    "refs": len(refs),
                    "run_wall": round(wall, 2),
                    **of_six,
                }
            )
        )


def of_a_launcher(name: str) -> None:
    """Prints what six launches take beside the stages' own seconds and their programs' imports."""
    imports = [python(*arguments) for arguments in (["-m", "alignment.stages", "--help"], PROGRAMS[name]) if arguments]
    imports = [] if name == "step" else imports
    made: list[Commit] = []
    with tempfile.TemporaryDirectory() as folder, dg.instance_for_test() as instance:
        store = Store(f"{folder}/store", Path(folder, "cache"))
        pool = Pool.model_validate({"slots": 1, "launcher": name})
        requests = []
        for number in range(len(STAGES)):
            path = Path(folder, f"{number}.jsonl")
            path.write_text(json.dumps({"prompt": f"{number}", "chosen": "yes", "rejected": "no"}) + "\n")
            requests.append(ShardRequest(file=pin_file(str(path))))

        @dg.asset
        def launches(context: dg.AssetExecutionContext) -> dg.MaterializeResult:  # type: ignore[type-arg]
            for request in requests:
                made.append(launcher_for(pool).run(Launch(STAGE, request, store, pool, context, name)))
            return dg.MaterializeResult()

        wall, cpu = timed(lambda: dg.materialize([launches], instance=instance))
    count, work = len(made), sum(commit.seconds for commit in made)
    import_wall, import_cpu = (count * sum(each[place] for each in imports) for place in (0, 1))
    numbers = {"wall": wall, "cpu": cpu, "work": work, "imports_wall": import_wall, "imports_cpu": import_cpu}
    # the stages' own processor seconds are not known apart, and stay in the second number
    numbers |= {"orchestration_wall": wall - work - import_wall, "cpu_beside_imports": cpu - import_cpu}
    shown = {what: round(seconds, 2) for what, seconds in numbers.items()}
    print(json.dumps({"what": f"six launches by {name}", "load": round(os.getloadavg()[0], 1), **shown}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="store_true")
    parser.add_argument("--launchers", nargs="*", choices=list(PROGRAMS), default=["step", "torchrun"])
    arguments = parser.parse_args()
    if arguments.run:
        of_a_run()
        return
    for name in arguments.launchers:
        of_a_launcher(name)


if __name__ == "__main__":
    main()
