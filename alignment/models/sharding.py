"""One model whose weights are cut over the ranks of a run: FSDP2's `fully_shard` over its decoder layers and its root.

Each rank keeps its rows of every weight. A layer is put together for the time that it runs, in the dtype of
computation, and its gradients come back summed over the ranks in float32. Embeddings, last norm and head are the root's
and stay together from a pass's first layer to its last gradient, as the head runs outside of the model's own forward.
All ranks put weights together at the same time, so each makes as many passes as the others, with empty ones where it
has nothing left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

from alignment.errors import BadInput
from alignment.models.forward import decoder_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

T = TypeVar("T")

_sharded: WeakKeyDictionary[Any, Sharding] = WeakKeyDictionary()


class Sharding:
    """How a sharded model is run; `sharding_of` gives that of a model, `dtype` is that of its computation."""

    def __init__(self, root: Any, dtype: torch.dtype, ranks: int) -> None:
        self.root, self.dtype, self.ranks = root, dtype, ranks
        self._accumulates = False

    def through(self, work: Callable[[], T]) -> T:
        """What `work` returns, which runs the model or its decoder once; every rank calls this at the same time.

        Embeddings and head are whole from here on: until the gradient of what was returned has been taken, or until
        `release`.
        """
        try:
            done: T = self.root(lambda: self._begun(work))
        except Exception:  # such as a model that takes no packed pass: the next pass is another one
            if hasattr(self.root, "reset_iter_state"):  # torch 2.13
                self.root.reset_iter_state()
            raise
        return done

    def _begun(self, work: Callable[[], T]) -> T:
        if not self._accumulates:
            self._accumulate_in_float32()
        return work()

    def _accumulate_in_float32(self) -> None:
        """The root's weights have several gradients in a pass: one for each block of the head, and where the head is
        the embeddings another for these. Each is added in float32, as `MasterAdamW` does, before the ranks' are."""
        self._accumulates = True
        for weight in self.root._get_fsdp_state()._fsdp_param_group.fsdp_params:
            if not weight.sharded_param.requires_grad:
                continue

            def add(_: torch.Tensor, weight: Any = weight) -> None:
                weight.accumulate_unsharded_grad_if_needed()
                weight.to_accumulated_grad_if_needed()

            weight.unsharded_param.register_post_accumulate_grad_hook(add)

    def release(self) -> None:
        """Ends a pass without a gradient: what it put together is cut again."""
        self.root.reshard()

    def missing(self, passes: int) -> int:
        """Empty passes that this rank makes after `passes` of its own, so that it makes as many as every other."""
        import torch

        most = torch.tensor([passes])
        torch.distributed.all_reduce(most, op=torch.distributed.ReduceOp.MAX)
        return int(most) - passes


def sharding_of(model: Any) -> Sharding | None:
    """None for a model that each process has whole."""
    return _sharded.get(model)


def shard(model: PreTrainedModel, precision: str, device: torch.device) -> Sharding:
    """Cuts the weights of `model`, on the CPU, over all ranks, each rank's on `device`.

    The weights of a model that is trained whole are kept in float32 and rounded to `precision` whenever they are put
    together, as an optimiser with float32 masters would round them. Of one with adapters the frozen weights are cut,
    and each rank keeps the adapters. Raises `BadInput` for a model that cannot be cut.
    """
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    dtype = getattr(torch, precision)
    _require_shardable(model, dtype)
    ranks = torch.distributed.get_world_size()
    mesh = init_device_mesh(device.type, (ranks,))
    # Inputs of layers have the dtype of the embeddings' output, as in a model that is not sharded; what a model keeps
    # finer, such as rotary angles, stays so.
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    root = _passes_of(model)
    kept = adapters(model)
    how: dict[str, Any] = {"mesh": mesh, "mp_policy": policy, "ignored_params": set(kept)}
    for module in [*_layers(model), root]:
        for weight in () if kept else module.parameters():
            if local(weight) is weight:  # one layer after the other: no model is whole in float32
                weight.data = weight.data.float()
        fully_shard(module, **how)
        module.set_gradient_divide_factor(1.0)  # a step's loss is a sum over its rows, whatever rank they are on
        module.set_force_sum_reduction_for_comms(True)  # gloo knows no other than plain sums
        module.set_reduce_scatter_unused_params(
            True
        )  # a weight that one rank's rows do not reach is summed all the same
    for tensor in (*kept, *model.buffers()):
        tensor.data = tensor.data.to(device)
    _sharded[model] = sharding = Sharding(root, dtype, ranks)
    return sharding


def adapters(model: PreTrainedModel) -> list[torch.Tensor]:
    """The trained weights of a model of which the others are frozen; none where all are trained."""
    weights = list(model.parameters())
    trained = [weight for weight in weights if weight.requires_grad]
    return trained if len(trained) < len(weights) else []


def _passes_of(model: PreTrainedModel) -> Any:
    """A module over the whole model whose forward runs whatever it is given: the pass calls the decoder and the head by
    themselves, and what puts weights together hangs on a module's forward."""
    import torch

    class Passes(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, work: Callable[[], Any]) -> Any:
            return work()

    return Passes()


def _layers(model: PreTrainedModel) -> list[Any]:
    """The decoder's layers: its largest list of modules; none where it has no list."""
    import torch

    lists = [list(child) for child in decoder_of(model).children() if isinstance(child, torch.nn.ModuleList)]
    return max(
        lists, key=lambda layers: sum(weight.numel() for layer in layers for weight in layer.parameters()), default=[]
    )


def _require_shardable(model: PreTrainedModel, dtype: torch.dtype) -> None:
    import torch
    from transformers.core_model_loading import WeightConverter

    why = None
    finer = getattr(model, "_keep_in_fp32_modules_strict", None)
    layers = _layers(model)
    inside = {id(weight) for layer in layers for weight in layer.parameters()}
    outside = {
        id(weight)
        for module in decoder_of(model).modules()
        if not any(module is part for layer in layers for part in layer.modules())
        for weight in module._parameters.values()
        if weight is not None
    }
    if not layers:
        why = "its decoder has no list of layers"
    elif any(weight.dim() == 0 for weight in model.parameters()):
        why = f"{next(name for name, weight in model.named_parameters() if weight.dim() == 0)} is a single number"
    elif inside & outside:
        why = "its layers share a weight with the rest of the model"
    elif finer and dtype != torch.float32:
        why = f"it keeps {', '.join(sorted(finer))} in float32"
    elif any(isinstance(each, WeightConverter) for each in getattr(model, "_weight_conversions", None) or ()):
        why = "its weights are stored in another layout than they are trained in"
    if why is not None:
        raise BadInput(f"{type(model).__name__} cannot be sharded: {why}; leave out sharded", field="sharded")


# A weight's rows: what a rank has, and the whole of it.


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's rows of a weight or of what goes with it; all of a tensor that is not sharded."""
    part: torch.Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor  # type: ignore[operator]
    return part


def rows_of(tensor: torch.Tensor) -> tuple[int, int]:
    """The first of this rank's rows in the whole tensor, and the one after the last."""
    import torch

    part = local(tensor)
    if part is tensor:
        return 0, tensor.shape[0]
    ranks, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    first = min(rank * -(-tensor.shape[0] // ranks), tensor.shape[0])  # as torch.chunk cuts
    return first, first + part.shape[0]


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All rows; every rank calls this at the same time."""
    part: torch.Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # type: ignore[operator]
    return part


def wholes(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and whole tensor of each weight and stored buffer, one after the other; every rank goes through them all."""
    import torch

    stored = set(model.state_dict(keep_vars=True))
    for name, weight in model.named_parameters():
        with torch.no_grad():
            yield name, whole(weight)
    for name, buffer in model.named_buffers():
        if name in stored:
            yield name, buffer
