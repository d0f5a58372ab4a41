"""Whole optimiser steps: beside TRL's, with and without adapters, their memory beside the plan's, and their resume.

These parts need more than a bare image has. What is not there is named in the part's rows, and
`benchmarks/gpu_wheels.sh` brings it along.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from alignment.logprobs.scorer import logps
from alignment.methods.dpo import Dpo
from alignment.models.memory import Checkpointing, PackedPass, Trained, training_bytes
from alignment.models.runner import Runner
from alignment.models.shape import shape_of
from alignment.models.size import peak_flops, scoring_flops
from alignment.training import packed_step
from benchmarks.gpu.passes import COMPARED_PAIRS
from benchmarks.gpu.steps import step_rows
from benchmarks.gpu.tools import GIB, Record, build, scratch_of, short, timed
from benchmarks.preference_mix import Size, StepRow
from benchmarks.trl_pass import trl_pass, trl_step, without_trl

LORA_RANK = 16
LORA_LAYERS = {"8b": 32}
"""All layers of a shape of which the other parts take some: with an adapter they fit."""
TRL_BATCH = 8
"""TRL's own pairs a device, for scoring and for a step."""


BRING = "bash benchmarks/gpu_wheels.sh brings it along"


def lacking(record: Record, name: str, *packages: str) -> bool:
    """Whether a package is not there; the part's rows then say so."""
    absent = [package for package in packages if find_spec(package) is None]
    if absent:
        record.add(shape=name, skipped=f"needs {', '.join(absent)}: {BRING}")
    return bool(absent)


def trl(record: Record, name: str, size: Size, device: torch.device) -> None:
    """Scoring and a step, ours beside TRL's in the order of the data and over rows sorted by length.

    The reference log-probs of the steps are cached; scoring without TRL is the same padded pass by hand, and says so.
    """
    model, budget = build(size, torch.bfloat16, device), size.batch_tokens
    rows = step_rows(model, size, max(COMPARED_PAIRS, size.pairs // 4), budget)
    ordered = sorted(rows, key=lambda row: -max(len(row.chosen), len(row.rejected)))
    flat = [sequence for row in rows for sequence in (row.chosen, row.rejected)]

    def compare(what: str, ways: dict[str, Callable[[], Any]]) -> None:
        ours = None
        for way, run in ways.items():
            seconds = timed(run, device, rounds=3, at_most=3.0)
            ours = ours or seconds
            record.add(shape=name, measured=what, way=way, seconds=seconds, ours_is_faster_by=seconds / ours)

    called, theirs = trl_pass(model)
    pairs, sorted_pairs = ([(row.chosen, row.rejected) for row in each] for each in (rows, ordered))
    compare(
        "scoring",
        {
            "ours": lambda: logps(model, flat, budget),
            f"{called}, data order, batch {TRL_BATCH}": lambda: theirs(pairs, TRL_BATCH),
            f"{called}, sorted, batch {TRL_BATCH}": lambda: theirs(sorted_pairs, TRL_BATCH),
        },
    )
    if (problem := without_trl()) is not None:
        record.add(shape=name, skipped=f"steps need TRL, which cannot be imported ({problem}): {BRING}")
        return
    runner, method = Runner.of(model, flat[0]), Dpo()
    of_trl = trl_step(model, method.beta)

    def ours() -> None:
        model.zero_grad(set_to_none=True)
        packed_step.backward(runner, method, rows, len(rows), budget, model.parameters())

    def their(order: list[StepRow], batch: int) -> Callable[[], float]:
        def run() -> float:
            model.zero_grad(set_to_none=True)
            return of_trl(order, batch)

        return run

    ways: dict[str, Callable[[], Any]] = {"ours": ours}
    for batch in (4, TRL_BATCH):
        ways[f"{called}, cached, data order, {batch} pairs"] = their(rows, batch)
        ways[f"{called}, cached, sorted, {batch} pairs"] = their(ordered, batch)
    compare("step", ways)


class Training:
    """A model, its optimiser as the trainer makes it, and one step of all rows."""

    def __init__(self, size: Size, device: torch.device, checkpointing: Any = False, adapter: bool = False) -> None:
        from alignment.models.recompute import recompute_cheap_parts
        from alignment.training.trainer import MasterAdamW

        self.model = build(size, torch.bfloat16, device)
        self.budget = size.batch_tokens
        self.rows = step_rows(self.model, size, COMPARED_PAIRS, self.budget)
        if checkpointing == "selective":
            recompute_cheap_parts(self.model)
        elif checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        whole = self.model
        if adapter:
            from peft import LoraConfig, get_peft_model

            lora = LoraConfig(r=LORA_RANK, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
            whole = get_peft_model(self.model, lora)
        self.whole, trained = whole.train(), [weight for weight in whole.parameters() if weight.requires_grad]
        groups = [{"params": trained, "weight_decay": 0.0}]
        settings: dict[str, Any] = {"lr": 1e-5, "fused": device.type == "cuda"}
        if adapter:
            self.optimiser: torch.optim.Optimizer = torch.optim.AdamW(groups, **settings)
        else:
            self.optimiser = MasterAdamW(groups, **settings)
            self.optimiser.accumulate_in_float32()
        self.clear = trained

    def step(self) -> packed_step.StepNumbers:
        """Forward, backward, clipping and the optimiser's own step."""
        from alignment.models.attention import shared_prompts

        owners = [weight for group in self.optimiser.param_groups for weight in group["params"]]
        runner = Runner.of(self.model, self.rows[0].chosen)
        with shared_prompts(self.model):  # open over the backward pass, which runs layers again
            numbers = packed_step.backward(
                runner, Dpo(), self.rows, len(self.rows), self.budget, [*self.clear, *owners]
            )
        torch.nn.utils.clip_grad_norm_(owners, 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad()
        return numbers


def whole(record: Record, name: str, size: Size, device: torch.device) -> None:
    """Seconds of a whole optimiser step, full and with LoRA on all layers.

    Utilisation counts a prompt once and no recompute: three forward passes, with frozen weights two.
    """
    if lacking(record, name, "pydantic"):
        return
    full = size
    if name in LORA_LAYERS:
        full = replace(size, config=size.config | {"num_hidden_layers": LORA_LAYERS[name]})
    kinds = [("full", size, False, False), ("full, selective", size, "selective", False)]
    if not lacking(record, name, "peft"):
        kinds.append((f"LoRA of rank {LORA_RANK}", full, "selective", True))

    def one(kind: str, of: Size, checkpointing: Any, adapter: bool) -> None:
        training = Training(of, device, checkpointing, adapter)
        flat = [sequence for row in training.rows for sequence in (row.chosen, row.rejected)]
        flops = (2 if adapter else 3) * (scoring_flops(training.model, flat) or 0.0)
        numbers = training.step()
        seconds, peak = timed(training.step, device, rounds=3, at_most=4.0), peak_flops(device, torch.bfloat16)
        record.add(
            shape=name,
            kind=kind,
            layers=of.config["num_hidden_layers"],
            pairs=len(training.rows),
            pass_tokens=Runner.known(training.model).most or training.budget,
            seconds=seconds,
            tokens_per_second=numbers.tokens / seconds,
            utilisation=flops / seconds / peak if peak else None,
        )

    for kind in kinds:
        with room_for(record, device, shape=name, kind=kind[0]):
            one(*kind)


@contextmanager
def room_for(record: Record, device: torch.device, **what: Any) -> Iterator[None]:
    """Ends with an empty device. A model or an optimiser that does not fit is a row of its own, and the next one has
    its turn."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        record.add(**what, failed=f"out of memory: {str(error).splitlines()[0]}")
    _empty(device)  # what the error held is free by now


def memory(record: Record, name: str, size: Size, device: torch.device) -> None:
    """The largest memory of a whole step beside the plan's, by what activations are kept. A CPU's is not known."""
    if lacking(record, name, "pydantic"):
        return
    shape = shape_of({"model_type": "llama", **size.config})
    assert shape is not None

    def one(checkpointing: Checkpointing) -> None:
        training = Training(size, device, checkpointing)
        runner = Runner.of(training.model, training.rows[0].chosen)
        sides = [[row.chosen, row.rejected] for row in training.rows]
        passes = runner.passes_of_rows(sides, runner.budget(size.batch_tokens))
        largest = max(passes, key=lambda part: sum(len(one) for place in part for one in sides[place]))
        lengths = [
            (len(sides[place][0].prompt_ids), [len(one.completion_ids) for one in sides[place]]) for place in largest
        ]
        packed = PackedPass.of(lengths)
        if fill := runner.fill(size.batch_tokens):
            packed = replace(packed, tokens=max(packed.tokens, fill))
        trained = Trained(shape.parameters, 0, short(torch.bfloat16))
        parts = training_bytes(shape, trained, packed, checkpointing=checkpointing, flash=device.type == "cuda")
        training.step()
        measured = None
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            training.step()
            measured = torch.cuda.max_memory_allocated() / GIB
        planned = sum(parts.values()) / GIB
        record.add(
            shape=name,
            checkpointing=str(checkpointing).lower(),
            pass_tokens=runner.most or size.batch_tokens,  # less than planned where memory ran out
            planned_gib=planned,
            measured_gib=measured,
            measured_by_planned=None if measured is None else measured / planned,
            **{f"{part}_gib": held / GIB for part, held in parts.items()},
        )

    kinds: tuple[Checkpointing, ...] = (False, "selective", True)
    for checkpointing in kinds:
        with room_for(record, device, shape=name, checkpointing=str(checkpointing).lower()):
            one(checkpointing)


MOMENTS_AND_MASTER = 12
"""Bytes of a parameter in a trainer's checkpoint."""
MOST_WRITTEN = 16 * GIB


def resume(record: Record, name: str, size: Size, device: torch.device) -> None:
    """Steps that are interrupted, written and read back, beside steps that are not: the weights, bit for bit."""
    if lacking(record, name, "pydantic", "peft"):
        return
    from alignment.training import shards

    def scheduler(training: Training) -> Any:
        return torch.optim.lr_scheduler.LambdaLR(training.optimiser, lambda step: 1.0)

    undisturbed = Training(size, device)
    held = sum(MOMENTS_AND_MASTER * weight.numel() for weight in undisturbed.model.parameters())
    if held > MOST_WRITTEN:
        record.add(shape=name, skipped=f"a checkpoint of {held / GIB:.0f} GiB takes longer to write than this part has")
        return
    scratch = scratch_of(record.path.parent)
    scratch.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        for step in range(4):
            if step == 2:
                shards.save_tensors(Path(folder), undisturbed.model, undisturbed.optimiser, 0, 1)
                shards.save_numbers(Path(folder), undisturbed.model, undisturbed.optimiser, scheduler(undisturbed), 1)
            undisturbed.step()
        expected = [weight.detach().cpu() for weight in undisturbed.model.parameters()]
        del undisturbed
        _empty(device)
        resumed = Training(size, device)
        shards.load(Path(folder), resumed.model, resumed.optimiser, scheduler(resumed))
        held = sum(path.stat().st_size for path in Path(folder).iterdir())
    for _ in range(2):
        resumed.step()
    found = [weight.detach().cpu() for weight in resumed.model.parameters()]
    differing = sum(int((one != other).sum()) for one, other in zip(found, expected, strict=True))
    record.add(shape=name, steps=4, interrupted_after=2, checkpoint_gib=held / GIB, differing=differing)


def _empty(device: torch.device) -> None:
    if device.type == "cuda":
        import gc

        gc.collect()
        torch.cuda.empty_cache()
