"""What a run is resumed from: rows of masters and moments as safetensors, the rest as JSON.

Of a sharded model every rank writes its own rows, of another one the first rank writes all. A file names its tensors
`weight.NAME`, `exp_avg.NAME` and `exp_avg_sq.NAME`; their rows follow one another in the order of the files. So any
number of ranks reads what any other number wrote, sharded or not, and no rank reads more than its own rows. Nothing
that is read back is pickle.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from alignment.errors import BadInput
from alignment.models.sharding import local, rows_of
from alignment.training.models import owners
from alignment.training.resume import TRAINING_FILE

MOMENTS = ("exp_avg", "exp_avg_sq")


def save_tensors(folder: Path, model: Any, optimizer: Any, part: int, parts: int) -> None:
    """One of `parts` files: this rank's rows of a sharded model, or all of another."""
    inner = _inner(optimizer)
    tensors = {}
    for name, owner in owners(model, optimizer).items():
        tensors[f"weight.{name}"] = in_rows(local(owner.detach())).contiguous()
        for moment in MOMENTS:
            if moment in inner.state[owner]:
                tensors[f"{moment}.{name}"] = in_rows(local(inner.state[owner][moment])).contiguous()
    save_file(tensors, folder / _file(part, parts))


def save_numbers(folder: Path, model: Any, optimizer: Any, scheduler: Any, parts: int) -> None:
    """What is no tensor, the same on every rank: one of them writes it. `parts` are the files of `save_tensors`."""
    inner = _inner(optimizer)
    state = {name: inner.state[owner] for name, owner in owners(model, optimizer).items()}
    training = {
        "ranks": parts,
        "steps": {name: float(each["step"]) for name, each in state.items() if "step" in each},
        "groups": [{key: group[key] for key in ("lr", "initial_lr") if key in group} for group in inner.param_groups],
        "scheduler": {key: value for key, value in scheduler.state_dict().items() if key != "lr_lambdas"},
    }
    (folder / TRAINING_FILE).write_text(json.dumps(training, indent=1) + "\n", encoding="utf-8")


@torch.no_grad()
def load(folder: Path, model: Any, optimizer: Any, scheduler: Any) -> None:
    """Puts a run back to where `folder` was written, whatever number of ranks wrote it and reads it."""
    training = json.loads((folder / TRAINING_FILE).read_text(encoding="utf-8"))
    with ExitStack() as stack:
        ranks = training["ranks"]
        files = [stack.enter_context(safe_open(folder / _file(rank, ranks), "pt")) for rank in range(ranks)]

        def read(name: str, owner: torch.Tensor) -> torch.Tensor:
            owner = in_rows(owner)
            first, last = rows_of(owner)
            parts, start = [], 0
            for file in files:
                part = file.get_slice(name)
                count = part.get_shape()[0]
                low, high = max(first, start), min(last, start + count)
                if low < high:
                    parts.append(part[low - start : high - start])
                start += count
            if start != owner.shape[0]:
                raise BadInput(f"{name} has {start} rows and the model's has {owner.shape[0]}", file=str(folder))
            return torch.cat(parts) if parts else torch.empty(0, *owner.shape[1:])

        def moments(name: str, owner: torch.Tensor) -> dict[str, Any]:
            if name not in training["steps"]:
                return {}
            return {"step": training["steps"][name]} | {each: read(f"{each}.{name}", owner) for each in MOMENTS}

        _restore(model, optimizer, lambda name, owner: (read(f"weight.{name}", owner), moments(name, owner)))
    for group, saved in zip(_inner(optimizer).param_groups, training["groups"], strict=True):
        group.update(saved)
    scheduler.load_state_dict({**scheduler.state_dict(), **training["scheduler"]})


def _restore(model: Any, optimizer: Any, read: Any) -> None:
    """Fills masters and moments with what `read(name, owner)` gives: this rank's rows, and its moments by name."""
    inner = _inner(optimizer)
    weights = dict(model.named_parameters())
    for name, owner in owners(model, optimizer).items():
        rows, moments = read(name, owner)
        local(owner.detach()).view_as(rows).copy_(rows)
        if weights[name] is not owner:
            weights[name].copy_(owner)
        if not moments:
            continue
        on = local(owner).device if inner.defaults.get("fused") else torch.device("cpu")
        state = {"step": torch.tensor(moments["step"], dtype=torch.float32, device=on)}
        for moment in MOMENTS:
            state[moment] = torch.zeros_like(owner.detach())
            local(state[moment]).view_as(rows).copy_(moments[moment])
        inner.state[owner] = state


# Random numbers: a rank's own, which mean nothing to another number of ranks.


def save_random(folder: Path, rank: int, ranks: int) -> None:
    """Writes a rank's random state, of the CPU and of its GPU."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    save_file(states, folder / f"random-{_file(rank, ranks)}")


def load_random(folder: Path, rank: int, ranks: int) -> None:
    """Restores it, where as many ranks wrote one."""
    path = folder / f"random-{_file(rank, ranks)}"
    if not path.is_file():
        return
    states = load_file(path)
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def in_rows(tensor: torch.Tensor) -> torch.Tensor:
    """A single number, which is in no row, as one row of one."""
    return tensor if tensor.dim() else tensor.reshape(1)


def _file(rank: int, ranks: int) -> str:
    return f"shard-{rank + 1:05d}-of-{ranks:05d}.safetensors"


def _inner(optimizer: Any) -> Any:
    return getattr(optimizer, "optimizer", optimizer)  # as the trainer's accelerator wraps it
