"""Two processes with half of each weight learn what one learns with the whole."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from alignment.data.validate import halves
from alignment.methods import METHODS
from alignment.recipe import TokenPolicy
from alignment.stages import execute
from alignment.stages.policy_checkpoint import STAGE
from alignment.stages.reference_logprobs import STAGE as SCORING
from alignment.stages.reference_logprobs import ReferenceRequest
from alignment.stages.sft_checkpoint import STAGE as FINE_TUNING
from alignment.store import Artifact, Commit, Store
from eval.stages.new_rows import STAGE as NEW_ROWS
from eval.stages.new_rows import NewRowsRequest
from eval.summaries import NewRowsSummary
from tests.alignment.training.conftest import interrupted_at
from tests.alignment.training.sharded_run import PART
from tests.alignment.training.two_processes import TwoProcesses, watched

LOST = "process 2 was lost: SIGKILL ended it"


def lost_in(what: str, number: int, stage: Any, request: Any, store: Store, folder: Path) -> None:
    """Runs the stage in two processes, of which the second is killed (see `sharded_run`); one line says so."""
    path = folder / "request.json"
    path.write_text(request.model_dump_json(), encoding="utf-8")
    ranks = [sys.executable, "-m", "alignment.stages.ranks", "--nproc-per-node", "2", "--standalone"]
    run = ["-m", "tests.alignment.training.sharded_run", what, str(number), stage.name]
    command = [*ranks, *run, "--request", str(path), "--store", store.url]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 128 + signal.SIGKILL, done.stderr
    assert LOST in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr and "SIGTERM" not in done.stderr
    assert store.find(stage.kind, stage.key(request)) is None


def held(file: Path, rank: int) -> dict[str, int]:
    numbers: dict[str, int] = json.loads(file.with_suffix(f".{rank}").read_text(encoding="utf-8"))
    return numbers


def weights_of(store: Store, artifact: Artifact) -> dict[str, Any]:
    return load_file(store.fetch(artifact) / "model.safetensors")


def apart(store: Store, found: Commit, twin: Store, expected: Commit, start: Artifact) -> float:
    """‖found − expected‖ / ‖expected − start‖ over all weights; both have the same names, dtypes and shapes."""
    ours, theirs, before = (
        weights_of(place, artifact)
        for place, artifact in ((store, found.artifact), (twin, expected.artifact), (store, start))
    )
    shapes = [{name: (each.dtype, each.shape) for name, each in weights.items()} for weights in (ours, theirs)]
    assert shapes[0] == shapes[1]
    between = sum(float((ours[name].double() - theirs[name].double()).square().sum()) for name in ours)
    moved = sum(float((theirs[name].double() - before[name].double()).square().sum()) for name in ours)
    return float((between / moved) ** 0.5)


def requests(lab: Any, checkpoint: Artifact, manifest: Artifact, steps: int = 20, **settings: Any) -> list[Any]:
    """For one process and for two: `steps` steps of 8 rows."""
    given = {"batch_size": 8, "epochs": 30.0, "max_steps": steps, "learning_rate": 1e-4, "sharded": True, **settings}
    return [lab.dpo_request(checkpoint, manifest, world_size=size, **given) for size in (1, 2)]


@pytest.mark.parametrize(
    ("kind", "sgd", "most"),  # whose head is its embeddings, and whose has its own
    [("llama", False, 1e-4), ("qwen2", True, 1e-5)],
)
def test_two_processes_with_half_of_each_weight_learn_in_20_steps_what_one_learns(
    kind: str, sgd: bool, most: float, lab: Any, tmp_path: Path, two_processes: TwoProcesses
) -> None:
    """AdamW divides by the root of a squared gradient, and so makes much of a little rounding; SGD does not.

    SGD's bound holds at the rate that is set here (`RATE_OF_SGD`). At 1e-4 the rounding of weights is large against the
    steps, and at 0.5 steps make a hundred times as much of a difference. In float64 it is below 1e-10 at every rate:
    `test_packed_step.test_the_steps_of_two_ranks_differ_from_those_of_one_by_rounding_alone` has the figures.
    """
    checkpoint = lab.checkpoint(kind=kind)
    # layers are put together once more where their activations are computed again
    one, two = requests(lab, checkpoint, lab.manifest(checkpoint, lab.rows(36)), gradient_checkpointing=sgd)
    assert STAGE.key(one) == STAGE.key(two)
    twin, halves, whole = lab.twin(tmp_path / "one"), tmp_path / "halves", tmp_path / "whole"
    together = two_processes.execute(STAGE, two, lab.store, halves, sgd)
    with watched(whole, sgd):
        single = execute(STAGE, one, twin)
    assert together.summary["steps"] == single.summary["steps"] == 20
    assert apart(lab.store, together, twin, single, checkpoint) <= most
    alone = held(whole, 0)
    assert alone["weights"] and alone["gradients"] and bool(alone["moments"]) != sgd
    for rank in (0, 1):
        assert {name: size <= 0.51 * alone[name] for name, size in held(halves, rank).items()} == dict.fromkeys(
            alone, True
        )


@pytest.mark.parametrize(
    ("kind", "lora"), [("llama", None), ("qwen2", {"rank": 4, "target_modules": ["q_proj", "up_proj"]})]
)
def test_in_bfloat16_two_processes_learn_the_same_with_halves_as_with_copies(
    kind: str, lora: Any, lab: Any, tmp_path: Path, two_processes: TwoProcesses
) -> None:
    """Masters are cut, or what is frozen beside adapters; not a bit of a gradient is rounded more."""
    checkpoint = lab.checkpoint(kind=kind, dtype="bfloat16")
    manifest = lab.manifest(checkpoint, lab.rows(36), precision="bfloat16")
    given = {"steps": 5, "precision": "bfloat16", "lora": lora}
    (_, halves), (_, copies) = (requests(lab, checkpoint, manifest, sharded=cut, **given) for cut in (True, False))
    twin = lab.twin(tmp_path / "copies")
    found, expected = (two_processes.execute(STAGE, cut, place) for cut, place in ((halves, lab.store), (copies, twin)))
    assert found.summary["agreement"]["worst_nats"] == 0.0
    assert found.digest == expected.digest


@pytest.mark.parametrize("loss", ["kto", "simpo", "ld_dpo"])
def test_every_kind_of_method_is_sharded(loss: str, lab: Any, tmp_path: Path, two_processes: TwoProcesses) -> None:
    """Coupled rows are scored first, methods without a reference are not compared with one."""
    checkpoint, method = lab.checkpoint(), METHODS[loss]
    rows = [half for row in lab.rows(9) for half in halves(row)] if method.coupled else lab.rows(9)
    manifest = (
        lab.scored_manifest(checkpoint, rows, method)
        if method.needs_reference
        else lab.manifest(checkpoint, rows, referenced=False)
    )
    one, two = requests(lab, checkpoint, manifest, steps=3, loss=loss)
    twin = lab.twin(tmp_path / "one")
    together, single = two_processes.execute(STAGE, two, lab.store), execute(STAGE, one, twin)
    assert apart(lab.store, together, twin, single, checkpoint) <= 1e-4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_that_lost_a_process_goes_on_with_as_many_or_fewer(
    dtype: str, lab: Any, tmp_path: Path, two_processes: TwoProcesses
) -> None:
    checkpoint = lab.checkpoint(dtype=dtype)
    manifest = lab.manifest(checkpoint, lab.rows(19), precision=dtype)
    one, two = requests(lab, checkpoint, manifest, steps=6, save_steps=2, precision=dtype)
    twin = lab.twin(tmp_path / "undisturbed")
    undisturbed = two_processes.execute(STAGE, two, twin)
    lost_in("step", 5, STAGE, two, lab.store, tmp_path)
    (written,) = (lab.store.work_path(STAGE.kind, STAGE.key(two)) / "trainer").glob("checkpoint-*")
    assert {path.suffix for path in written.iterdir()} == {".json", ".safetensors"}, "nothing is pickled"
    alone = Store(str(shutil.copytree(lab.store.root, tmp_path / "alone")))
    resumed, by_one = two_processes.execute(STAGE, two, lab.store), execute(STAGE, one, alone)
    assert resumed.summary["resumed_from_step"] == by_one.summary["resumed_from_step"] == 4
    assert resumed.digest == undisturbed.digest
    # in 16 bits one process, whose passes are others, rounds its gradients otherwise, sharded or not
    assert apart(alone, by_one, twin, undisturbed, checkpoint) <= (1e-4 if dtype == "float32" else 2e-2)


def test_scoring_by_halves_that_lost_a_process_scores_again_only_what_was_not_kept(
    lab: Any, tmp_path: Path, two_processes: TwoProcesses
) -> None:
    """The second process is killed before it keeps its third part; the first may have kept its own by then."""
    checkpoint, rows = lab.checkpoint(), lab.rows(24)
    asked = {"tokens": TokenPolicy(max_length=64), "precision": "float32", "batch_tokens": 1}
    request = ReferenceRequest(checkpoint=checkpoint, shard=lab.shard(rows), sharded=True, **asked)
    twin = lab.twin(tmp_path / "undisturbed")
    lost_in("part", 2, SCORING, request, lab.store, tmp_path)
    resumed, undisturbed = two_processes.execute(SCORING, request, lab.store), execute(SCORING, request, twin)
    whole = undisturbed.summary["scored"]
    assert resumed.summary["sequences"] == undisturbed.summary["sequences"]
    assert whole - 5 * PART <= resumed.summary["scored"] <= whole - 4 * PART
    assert resumed.digest == undisturbed.digest


def test_a_run_with_whole_weights_is_gone_on_with_by_halves(
    lab: Any, tmp_path: Path, two_processes: TwoProcesses
) -> None:
    checkpoint = lab.checkpoint()
    one, two = requests(lab, checkpoint, lab.manifest(checkpoint, lab.rows(19)), steps=6, save_steps=2)
    twin = lab.twin(tmp_path / "undisturbed")
    undisturbed = execute(STAGE, one, twin)
    with interrupted_at(5):
        execute(STAGE, one, lab.store)
    resumed = two_processes.execute(STAGE, two, lab.store)
    assert resumed.summary["resumed_from_step"] == 4
    assert apart(lab.store, resumed, twin, undisturbed, checkpoint) <= 1e-4


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("llama", {"sharded": True, "micro_batch_size": 2}),
        ("qwen2", {"micro_batch_size": 8}),
        ("qwen2", {"sharded": True, "lora": {"rank": 4, "target_modules": ["q_proj", "up_proj"]}}),
    ],
)
def test_two_processes_are_fine_tuned_as_one_is(
    kind: str, settings: Any, lab: Any, tmp_path: Path, two_processes: TwoProcesses
) -> None:
    """With halves or copies, under one key. A step's rows, the last one's five too, are each taken once, and held-out
    batches are uneven: the first rank has one more, in which the second takes part."""
    base, dataset = lab.checkpoint(kind=kind), lab.sft_dataset(37, held_out=3)
    given = {"batch_size": 8, "micro_batch_size": 2, "learning_rate": 1e-4, "eval_steps": 2, **settings}
    one, two = (lab.sft_request(base, dataset, world_size=size, **given) for size in (1, 2))
    assert FINE_TUNING.key(one) == FINE_TUNING.key(two)
    twin = lab.twin(tmp_path / "one")
    together, single = two_processes.execute(FINE_TUNING, two, lab.store), execute(FINE_TUNING, one, twin)
    assert together.summary["steps"] == single.summary["steps"] == 5
    assert sum(together.summary["rows_per_rank"]) == sum(single.summary["rows_per_rank"]) == 37
    assert together.summary["tokens"] == single.summary["tokens"]
    assert together.summary["held_out_loss"] == pytest.approx(single.summary["held_out_loss"], abs=1e-4)
    assert apart(lab.store, together, twin, single, base) <= 1e-3


def test_a_fine_tuning_that_lost_a_process_goes_on_with_as_many_or_fewer(
    lab: Any, tmp_path: Path, two_processes: TwoProcesses
) -> None:
    base, dataset = lab.checkpoint(), lab.sft_dataset(44, held_out=3)
    given = {"batch_size": 8, "micro_batch_size": 2, "learning_rate": 1e-4, "save_steps": 2, "sharded": True}
    one, two = (lab.sft_request(base, dataset, world_size=size, **given) for size in (1, 2))
    twin = lab.twin(tmp_path / "undisturbed")
    undisturbed = two_processes.execute(FINE_TUNING, two, twin)
    lost_in("step", 5, FINE_TUNING, two, lab.store, tmp_path)
    (written,) = (lab.store.work_path(FINE_TUNING.kind, FINE_TUNING.key(two)) / "trainer").glob("checkpoint-*")
    assert {path.suffix for path in written.iterdir()} == {".json", ".safetensors"}, "nothing is pickled"
    alone = Store(str(shutil.copytree(lab.store.root, tmp_path / "alone")))
    resumed, by_one = two_processes.execute(FINE_TUNING, two, lab.store), execute(FINE_TUNING, one, alone)
    assert resumed.summary["resumed_from_step"] == by_one.summary["resumed_from_step"] == 4
    assert resumed.digest == undisturbed.digest
    assert apart(alone, by_one, twin, undisturbed, base) <= 1e-3


def test_new_rows_are_measured_by_a_champion_that_is_cut_over_two_processes(
    lab: Any, tmp_path: Path, two_processes: TwoProcesses
) -> None:
    """The second process takes part in the first one's passes: alone it would wait for ever."""
    start, method = lab.checkpoint(), METHODS["sigmoid"]
    known, manifest = (lab.scored_manifest(start, lab.rows(count), method) for count in (4, 12))
    champion = execute(STAGE, lab.dpo_request(start, known, learning_rate=1e-2), lab.store).artifact
    request = NewRowsRequest(
        checkpoint=champion,
        manifest=manifest,
        known=known,
        max_rows=6,
        tokens=TokenPolicy(max_length=64),
        precision="float32",
        batch_tokens=400,
        sharded=True,
    )
    shutil.copytree(lab.store.root, tmp_path / "one")
    twin = Store(str(tmp_path / "one"))
    together, single = two_processes.execute(NEW_ROWS, request, lab.store), execute(NEW_ROWS, request, twin)
    found, expected = NewRowsSummary.of(together), NewRowsSummary.of(single)
    assert (together.digest, found.new, found.measured, found.scored) == (single.digest, 8, 6, expected.scored)
    assert found.margin == pytest.approx(expected.margin, abs=1e-4)
