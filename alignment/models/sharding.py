"""One model whose weights are cut over the ranks of a run: FSDP2's `fully_shard` over its decoder layers and its root.

Each rank keeps its rows of every weight. A layer is put together for the time that it runs, in the dtype of
computation, and its gradients come back summed over the ranks in float32. Embeddings, last norm and head are the root's
and stay together from a pass's first layer to its last gradient, as the head runs outside of the model's own forward.
All ranks put weights together at the same time, so each makes as many passes as the others, with empty ones where it
has nothing left.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

from alignment.errors import BadInput
from alignment.models.forward import decoder_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

T = TypeVar("T")
R = TypeVar("R")
Read = Callable[[str, "torch.Tensor"], "torch.Tensor"]
"""Name and weight → this rank's rows of it as they are stored, on the CPU."""

_sharded: WeakKeyDictionary[Any, Sharding] = WeakKeyDictionary()


class Sharding:
    """How a sharded model is run; `sharding_of` gives that of a model, `dtype` is that of its computation."""

    def __init__(self, root: Any, dtype: torch.dtype, ranks: int) -> None:
        self.root, self.dtype, self.ranks = root, dtype, ranks
        self._accumulates = self._is_uncounted = False
        self._forward: Callable[..., Any] | None = None
        """The model's own, while calls of it go through `patch`."""

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

    def patch(self, model: Any) -> Callable[[], None]:
        """From now on `model(...)` puts the root's weights together too; what is returned ends that."""
        forward, own = model.forward, model.__dict__.get("forward")

        @functools.wraps(forward)
        def whole(*args: Any, **kwargs: Any) -> Any:
            if self._is_uncounted:
                self._working(1)
            return self.through(lambda: forward(*args, **kwargs))

        def restore() -> None:
            self._forward = None
            if own is None:
                del model.forward
            else:
                model.forward = own

        model.forward, self._forward = whole, forward
        return restore

    @contextmanager
    def uncounted(self, model: Any) -> Iterator[None]:
        """For the while, `model` may be called as often as each rank likes; every rank enters and leaves this.

        Before each call the ranks say to each other that there is one, and those that have left make an empty one.
        """
        restore = None if self._forward is not None else self.patch(model)
        assert self._forward is not None
        forward, self._is_uncounted = self._forward, True
        try:
            yield
            while self._working(0):
                self._empty(model, forward)
        finally:
            self._is_uncounted = False
            if restore is not None:
                restore()
        self.release()

    def _empty(self, model: Any, forward: Callable[..., Any]) -> None:
        import torch

        with torch.no_grad():
            self.through(lambda: forward(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device)))

    def _working(self, mine: int) -> int:
        """How many ranks call the model now."""
        import torch

        ranks = torch.tensor([mine])
        torch.distributed.all_reduce(ranks)
        return int(ranks)

    def missing(self, passes: int) -> int:
        """Empty passes that this rank makes after `passes` of its own, so that it makes as many as every other."""
        import torch

        most = torch.tensor([passes])
        torch.distributed.all_reduce(most, op=torch.distributed.ReduceOp.MAX)
        return int(most) - passes


def sharding_of(model: Any) -> Sharding | None:
    """None for a model that each process has whole."""
    return _sharded.get(model)


def shared_out(model: Any, parts: Sequence[T], work: Callable[[T], R]) -> list[R]:
    """`work` of each part, in order; it calls `model` as often as it likes.

    Of a sharded model each rank does some of the parts, and every rank, which calls this with the same parts at the
    same time, gets the results of all.
    """
    sharding = sharding_of(model)
    if sharding is None:
        return [work(part) for part in parts]
    import torch

    with sharding.uncounted(model):
        mine = [work(part) for part in parts[torch.distributed.get_rank() :: sharding.ranks]]
    everyones: list[Any] = [None] * sharding.ranks
    torch.distributed.all_gather_object(everyones, mine)
    return [everyones[place % sharding.ranks][place // sharding.ranks] for place in range(len(parts))]


def without_gradient(model: Any) -> Any:
    """The context of a forward pass without a gradient: what a sharded model puts together in inference mode could take
    part in no later gradient."""
    import torch

    return torch.inference_mode() if sharding_of(model) is None else torch.no_grad()


def shard(
    model: PreTrainedModel, precision: str, device: torch.device, *, read: Read | None = None, mean: bool = False
) -> Sharding:
    """Cuts the weights of `model`, on the CPU or without values, over all ranks, each rank's on `device`.

    The weights of a model that is trained whole are kept in float32 and rounded to `precision` whenever they are put
    together, as an optimiser with float32 masters would round them. Of one with adapters the frozen weights are cut,
    and each rank keeps the adapters; one that is not trained keeps its weights as they are. `read` fills weights that
    are on the meta device. Gradients are summed over the ranks, or with `mean` averaged. Raises `BadInput` for a model
    that cannot be cut.
    """
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    dtype = getattr(torch, precision)
    require_shardable(model, dtype)
    ranks = torch.distributed.get_world_size()
    mesh = init_device_mesh(device.type, (ranks,))
    # Inputs of layers have the dtype of the embeddings' output, as in a model that is not sharded; what a model keeps
    # finer, such as rotary angles, stays so.
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    root = _passes_of(model)
    if read is not None:
        replace_weights(model, lambda _, weight: weight.to("meta") if is_hollow(weight) else None)
    kept = adapters(model)
    names = {id(weight): plain_name(name) for name, weight in model.named_parameters()}
    how: dict[str, Any] = {"mesh": mesh, "mp_policy": policy, "ignored_params": set(kept)}
    for module in [*layers_of(model), root]:
        uncut = {at: weight for at, weight in module.named_parameters() if local(weight) is weight}
        for weight in () if kept else uncut.values():  # one layer after the other: no model is whole in float32
            weight.data = weight.data.float() if weight.requires_grad else weight.data
        named = {at: names[id(weight)] for at, weight in uncut.items()}
        del uncut
        fully_shard(module, **how)
        module.set_gradient_divide_factor(float(ranks) if mean else 1.0)  # summed: a step's loss is a sum over its rows
        module.set_force_sum_reduction_for_comms(True)  # gloo knows no other than plain sums
        if hasattr(module, "set_reduce_scatter_unused_params"):  # torch 2.13
            # a weight that one rank's rows do not reach is summed all the same
            module.set_reduce_scatter_unused_params(True)
        if read is not None:
            _fill(module, named, read, device)
    for tensor in (*kept, *model.buffers()):
        tensor.data = tensor.data.to(device)
    _sharded[model] = sharding = Sharding(root, dtype, ranks)
    return sharding


def _fill(module: Any, names: dict[str, str], read: Read, device: torch.device) -> None:
    """Gives the cut weights of a module that have no values yet this rank's rows of them."""
    from torch.distributed.tensor import DTensor

    def filled(at: str, weight: Any) -> Any:
        if not weight.is_meta:
            return None
        rows = read(names[at], weight).to(device)
        return DTensor.from_local(
            rows, weight.device_mesh, weight.placements, run_check=False, shape=weight.shape, stride=weight.stride()
        )

    replace_weights(module, filled)


def replace_weights(module: Any, put: Callable[[str, Any], torch.Tensor | None]) -> None:
    """Puts what `put(name, weight)` returns in the places of each weight, a tied one in all of its; None leaves it."""
    import torch

    made: dict[int, Any] = {}
    for at, weight in list(module.named_parameters(remove_duplicate=False)):
        if id(weight) not in made:
            new = put(at, weight)
            made[id(weight)] = None if new is None else torch.nn.Parameter(new, requires_grad=weight.requires_grad)
        if (parameter := made[id(weight)]) is not None:
            path, _, name = at.rpartition(".")
            setattr(module.get_submodule(path), name, parameter)


def hollow(weight: torch.Tensor) -> torch.Tensor:
    """A tensor on the CPU of the same shape and dtype that takes the memory of one element."""
    import torch

    return torch.zeros(1, dtype=weight.dtype).expand(weight.shape)


def is_hollow(weight: torch.Tensor) -> bool:
    """Whether it was made by `hollow`."""
    return not weight.is_meta and weight.untyped_storage().nbytes() < weight.nbytes


def plain_name(name: str) -> str:
    """A parameter's name without the wrappers of adapters."""
    return name.replace(".base_layer.", ".")


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


def layers_of(model: PreTrainedModel) -> list[Any]:
    """The decoder's layers: its largest list of modules; none where it has no list."""
    import torch

    lists = [list(child) for child in decoder_of(model).children() if isinstance(child, torch.nn.ModuleList)]
    return max(
        lists, key=lambda layers: sum(weight.numel() for layer in layers for weight in layer.parameters()), default=[]
    )


def require_shardable(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Raises `BadInput` for a model that cannot be cut; it may have no weights yet. `dtype` is that of computation."""
    import torch
    from transformers.core_model_loading import WeightConverter

    why = None
    finer = getattr(model, "_keep_in_fp32_modules_strict", None)
    layers = layers_of(model)
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
