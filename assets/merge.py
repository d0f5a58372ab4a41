"""The nodes of a recipe's `merge`: models from elsewhere, and `policy_checkpoint` as a weighted average."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from alignment.data.hub import HubUnreachable
from alignment.errors import BadInput, named_in
from alignment.models.checkpoint import read_config, text_config
from alignment.models.merging import other_sizes
from alignment.models.pin import hub_config, pin_model
from alignment.recipe.data import ModelSource
from alignment.recipe.recipe import Recipe
from alignment.recipe.training import SftTraining
from alignment.stages.execute import REQUEST_FILE
from alignment.stages.merged_checkpoint import STAGE, TRAINED, MergeRequest
from alignment.stages.policy import DpoRequest
from alignment.stages.sft_checkpoint import STAGE as ADOPTING
from alignment.stages.sft_checkpoint import SftRequest
from alignment.stages.stage import CheckpointSummary
from alignment.store import Artifact, Store
from alignment.store.erase import current_erasure
from assets.building.node import Node
from assets.building.upstream import Upstream
from assets.champion import registered_champion
from assets.learned import learned_withdrawn

TRAINED_NODE = "trained/policy_checkpoint"


def merge(recipe: Recipe) -> Iterator[Node]:
    """A node for each model from elsewhere, and that of the average."""
    adopted = {place: part.model for place, part in enumerate(recipe.merge, start=1) if part.model is not None}
    for place, model in adopted.items():
        yield adopted_model(recipe, place, model)
    yield merged_policy(recipe)


def _part_name(place: int) -> str:
    return f"merge_{place}/sft_checkpoint"


def adopted_model(recipe: Recipe, place: int, model: ModelSource) -> Node:
    """The node of a model from elsewhere, as it is."""

    def request(upstream: Upstream, shard: str | None) -> SftRequest:
        adopted = pin_model(model, f"merge.{place - 1}.model")
        return SftRequest(adopt=adopted, settings=SftTraining(), seed=recipe.seed)

    return Node(
        name=_part_name(place),
        phase="train",
        stage=ADOPTING,
        description="A model that the policy is averaged with.",
        kinds=frozenset({"huggingface"}),
        needs=(),
        request=request,
        is_checkpoint=True,
        object_to=lambda request, commit: require_fit(recipe, place, model),
    )


def merged_policy(recipe: Recipe) -> Node:
    """The node of the average, which takes the policy's place."""
    places = {
        f"model_{place}" if part.of is None else part.of: _part_name(place) if part.of is None else part.of
        for place, part in enumerate(recipe.merge, start=1)
    }
    nodes = places | {TRAINED: TRAINED_NODE} | ({"sft": "sft_checkpoint"} if "sft" in places else {})
    weights = {name: part.weight for name, part in zip(places, recipe.merge, strict=True)}

    def request(upstream: Upstream, shard: str | None) -> MergeRequest:
        trained = upstream(TRAINED_NODE)
        parts: dict[str, Artifact] = {}
        for name, node in nodes.items():
            part = champion_to_merge(upstream, trained) if name == "champion" else upstream(node)
            if part is not None:
                require_same(upstream.store, trained, part, name)
                parts[name] = part
        return average_with(upstream, trained, parts, {name: weights[name] for name in parts})

    averaged = ", ".join(f"{weight:g} of {name.replace('_', ' ')}" for name, weight in weights.items())
    return Node(
        name="policy_checkpoint",
        phase="train",
        stage=STAGE,
        description=f"The policy: a weighted average, {averaged}.",
        kinds=frozenset({"pytorch", "huggingface"}),
        needs=tuple(node for name, node in nodes.items() if name != "champion"),
        request=request,
        pool=recipe.pools.policy,
        is_checkpoint=True,
    )


def average_with(
    upstream: Upstream, trained: Artifact, parts: dict[str, Artifact], weights: dict[str, float]
) -> MergeRequest:
    """The request for an average of a trained policy's weights with those of other parts, by name."""
    made = DpoRequest.model_validate_json(upstream.store.read(trained, REQUEST_FILE))
    return MergeRequest(
        checkpoint=trained,
        manifest=made.manifest,
        settings=made.settings,
        tokens=made.tokens,
        parts=parts,
        weights=weights,
    )


def champion_to_merge(upstream: Upstream, trained: Artifact) -> Artifact | None:
    """The policy that was registered last and is neither this one nor an average of it; None without one, if its
    weights were erased, and if what was withdrawn since is in them."""
    champion = next(champions(upstream, trained), None)
    return champion if champion is not None and is_usable(upstream, champion) else None


def champions(upstream: Upstream, trained: Artifact) -> Iterator[Artifact]:
    """The policies that were registered, the last first and each once, without this one and averages of it. A merged
    policy that is registered must not be merged again with what it was made of."""
    store, latest, seen = upstream.store, upstream.get("registered_model"), set[str]()
    while latest is not None:
        champion = registered_champion(store, latest)
        if champion.policy is None or champion.registration is None:
            return
        made = store.commit_of(champion.policy)
        if trained.digest not in (made.digest, made.inputs["checkpoint"].digest) and made.digest not in seen:
            yield champion.policy
            seen.add(made.digest)
        latest = store.commit_of(champion.registration).inputs.get("previous")


def is_usable(upstream: Upstream, policy: Artifact) -> bool:
    """Whether the weights of a policy are there, and nothing that was withdrawn since is in them."""
    store = upstream.store
    return current_erasure(store, policy) is None and not learned_withdrawn(upstream, store.commit_of(policy))


def require_same(store: Store, policy: Artifact, part: Artifact, name: str) -> None:
    """Raises `BadInput` for a part whose record says that it is of another architecture than the policy."""
    one, other = (CheckpointSummary.of(store.commit_of(each)) for each in (policy, part))
    for size in ("architecture", "parameters", "vocab_size"):
        ours, theirs = getattr(one, size), getattr(other, size)
        if None not in (ours, theirs) and ours != theirs:
            told = f"{name} is of another architecture than the policy: {size} {theirs}, and the policy has {ours}"
            raise BadInput(told, field="merge")


def config_of(source: ModelSource) -> Mapping[str, Any] | None:
    """The language model's configuration, of a folder or of the hub; None of an embedded model, and where the hub is
    silent."""
    try:
        if source.path is not None:
            return text_config(read_config(Path(source.path).expanduser()))
        return None if source.hub is None else text_config(hub_config(source.hub, source.revision))
    except HubUnreachable:
        return None


def require_fit(recipe: Recipe, place: int, model: ModelSource, file: str | None = None) -> None:
    """Raises `BadInput` where a model to merge is of another architecture than the model that the recipe starts from,
    by their configurations; `place` is its own in `merge`, from 1."""
    adopted = recipe.sft and recipe.sft.adopt
    with named_in("sft.adopt.path" if adopted else "base_model.path"):
        ours = config_of(adopted or recipe.base_model)
    with named_in(f"merge.{place - 1}.model.path"):
        theirs = config_of(model)
    if ours is not None and theirs is not None and (other := other_sizes(ours, theirs)) is not None:
        told = f"is of another architecture than the policy: {other}"
        raise BadInput(told, file=file or recipe.name, field=f"merge.{place - 1}.model")


def require_one_architecture(recipe: Recipe, file: str | None = None) -> None:
    """Compares the folders of models to merge as `require_fit` does; those on the hub are compared by the plan."""
    for place, part in enumerate(recipe.merge, start=1):
        if part.model is not None and part.model.path is not None:
            require_fit(recipe, place, part.model, file)
