"""`preference_shard`: one source file's validated pairs; no model takes part."""

from __future__ import annotations

from pathlib import Path

from alignment.data.dataset_info import reading_of
from alignment.data.files import expand
from alignment.data.validate import Kind, first_kind
from alignment.errors import BadInput
from alignment.methods import wrong_kind
from alignment.recipe.data import PreferenceSource
from alignment.recipe.recipe import Recipe
from alignment.stages.preference_shard import STAGE, ShardRequest
from alignment.stages.stage import ShardSummary
from alignment.store import Commit
from assets.building.node import Node, Shown
from assets.building.show import findings_table, table
from assets.building.upstream import Upstream


def preference_shard(recipe: Recipe) -> Node:
    """The node of the validated shards."""

    def request(upstream: Upstream, shard: str | None) -> ShardRequest:
        shards = upstream.shards(recipe)
        if shard is None or shard not in shards:
            raise BadInput(f"no shard '{shard}' in the recipe's preferences", file=recipe.name, field="preferences")
        return shards[shard]

    def object_to(request: ShardRequest, commit: Commit | None) -> None:
        where = request.source if request.file is None else request.file.url
        if commit is not None:
            refuse_kind(ShardSummary.of(commit).kind, where, recipe)
        elif request.file is not None and is_local(where) and request.part == 0:  # the first part represents its file
            refuse_kind(first_kind(where, frozenset(request.withdrawn), request.reading), where, recipe)

    return Node(
        name="preference_shard",
        phase="shards",
        stage=STAGE,
        description="Validated preference rows of one source file; every other row is quarantined with its reason.",
        kinds=frozenset({"parquet"}),
        needs=(),
        request=request,
        show=show,
        partitioned=True,
        object_to=object_to,
    )


def refuse_kind(kind: Kind | None, where: str, recipe: Recipe) -> None:
    """Raises `BadInput` naming a source whose rows the method cannot train on; an unknown kind passes."""
    spelled = recipe.training
    if kind is not None and (why := wrong_kind(recipe.method, kind, spelled.spelling, spelled.called)) is not None:
        raise BadInput(why, file=where)


def refuse_files(recipe: Recipe) -> None:
    """The same for a recipe's present files, without a store. Remote and missing files pass."""
    for part in recipe.preferences.parts:
        for pattern in filter(is_local, part.files or ()):
            try:
                urls = expand(pattern, "preferences")
            except BadInput:
                continue
            for url in urls:
                refuse_kind(first_kind(url, reading=reading_of(url, part.reading())), url, recipe)


def shows_its_kind(source: PreferenceSource) -> bool:
    """Whether the kind of a source's rows can be seen before its shards are made, without a network."""
    return all(part.hub is None for part in source.parts) and all(map(is_local, source.file_patterns))


def is_local(url: str) -> bool:
    """Whether a URL names a file on this machine."""
    return "://" not in url or url.startswith(("file://", "local://"))


def show(commit: Commit, folder: Path) -> Shown:
    """What the numbers of the pairs say, and how many rows were quarantined, by reason."""
    summary = ShardSummary.of(commit)
    shown = {"preference_data": findings_table(summary.findings())} if summary.findings() else {}
    if summary.reasons:
        rows = sorted(summary.reasons.items(), key=lambda reason: -reason[1])
        shown["quarantine"] = table(("reason", "rows"), rows)
    return Shown(markdown=shown)
