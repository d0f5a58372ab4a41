"""The best weights of a run so far: found in its log, kept aside without the optimiser's state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment.training.models import master_weights


@dataclass(frozen=True)
class Looks:
    """Looks at the held-out loss: the best one's step and loss (the first of equals), and how many came after it."""

    best_step: int | None
    best_loss: float
    since: int


def looks(log_history: Iterable[Mapping[str, Any]]) -> Looks:
    """What the trainer's log says; one look a step (a resumed run may log one twice)."""
    seen = {int(entry["step"]): float(entry["eval_loss"]) for entry in log_history if "eval_loss" in entry}
    best_step, best_loss, since = None, float("inf"), 0
    for step in sorted(seen):
        if seen[step] < best_loss:
            best_step, best_loss, since = step, seen[step], 0
        else:
            since += 1
    return Looks(best_step, best_loss, since)


def patience_is_over(seen: Looks, patience: int) -> bool:
    return seen.since >= patience


class BestWeights:
    """`<folder>/step-N.safetensors`: what was trained, at the precision it is trained in.

    The best that the last trainer checkpoint knows is kept beside a newer one, for a run resumed from there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step}.safetensors"

    def save(self, step: int, model: Any, optimizer: Any) -> None:
        from safetensors.torch import save_file

        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / f".step-{step}"
        save_file({name: value.contiguous() for name, value in trained_values(model, optimizer).items()}, partial)
        partial.replace(self.path(step))

    def restore(self, step: int, model: Any, optimizer: Any) -> None:
        """Puts the weights of a step back into the model (and the optimiser's masters)."""
        from safetensors.torch import load_file

        saved = load_file(self.path(step))
        masters = {id(weight): master for weight, master in master_weights(optimizer)}
        for name, weight in model.named_parameters():
            if name in saved:
                weight.data.copy_(saved[name])
                if id(weight) in masters:
                    masters[id(weight)].data.copy_(saved[name])

    def forget_all_but(self, steps: set[int]) -> None:
        for path in self.folder.glob("step-*.safetensors"):
            if path not in {self.path(step) for step in steps}:
                path.unlink()


def trained_values(model: Any, optimizer: Any) -> dict[str, Any]:
    """Parameter name → its trained tensor: the float32 master where there is one."""
    masters = {id(weight): master for weight, master in master_weights(optimizer)}
    return {
        name: masters.get(id(weight), weight).detach()
        for name, weight in model.named_parameters()
        if weight.requires_grad
    }
