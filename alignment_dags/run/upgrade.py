"""What a new version makes anew in a store, and a person's acceptance of it, for which nights and sensors wait.

A stage whose code version was raised has new keys. Whatever is automatic leaves its artifacts as they are until
`align upgrade --accept`; what a person starts does not ask.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from alignment.data.hub import HubUnreachable
from alignment.errors import BadInput, CorruptArtifact, MissingArtifact, counted
from alignment.store import Artifact, Commit, Store
from alignment.store.store import commits_of
from assets.building.node import Node, NotNeeded
from assets.building.upstream import NotBuilt, Upstream
from eval.judge.judgment import READING
from eval.stages.scores import STAGE as SCORES
from eval.stages.scores import read_otherwise
from eval.summaries import ScoresSummary

Place = tuple[str, str]
"""A stage and one of its shards (empty for a stage without shards)."""
FOLDER = "upgrades"
ACCEPT = "`align upgrade --accept`"
CODE, VERDICTS = "code version", "reading of verdicts"


@dataclass(frozen=True)
class Moved:
    """A stage of a recipe that has a higher version than some of its current artifacts were committed under.

    `old` is the lowest of theirs. `shards` names the shards that these artifacts belong to; it is empty for a stage
    without shards, which has one artifact. `version` says which version is higher: that of the stage's code, or that of
    the rules that read a judge's verdicts, which moves keys as well.
    """

    stage: str
    old: int
    new: int
    shards: tuple[str, ...] = ()
    version: str = CODE

    @property
    def noted(self) -> str:
        """The name under which the version is accepted."""
        return self.stage if self.version == CODE else f"{self.stage} ({self.version})"

    @property
    def artifacts(self) -> int:
        """Artifacts of the stage that are made anew."""
        return len(self.shards) or 1


def moved_stages(
    nodes: Iterable[Node], upstream: Upstream, current: Mapping[str, Collection[str]] | None = None
) -> tuple[Moved, ...]:
    """Those of the nodes whose current artifacts, by the recipe's refs, are of an older code version.

    `current` maps a node to shards that are known to be up to date, so that their commit records need not be read.
    """
    nodes = tuple(nodes)
    recorded = upstream.refs("preference_shard")  # what else is kept of a shard that was withdrawn does not count
    standing: dict[Place, Artifact] = {}
    for node in nodes:
        known = set((current or {}).get(node.name, ()))
        if not node.partitioned:
            refs = {"": ref} if (ref := upstream.ref(node.name)) is not None else {}
        else:
            refs = {shard: ref for shard, ref in upstream.refs(node.name).items() if shard in recorded}
        standing |= {(node.name, shard): ref.artifact for shard, ref in refs.items() if shard not in known}
    versions: dict[str, dict[str, int]] = {}
    for (name, shard), commit in _commits(upstream.store, standing).items():
        versions.setdefault(name, {})[shard] = commit.code_version
    moved = []
    for node in nodes:
        new = node.stage.code_version
        older = {shard: version for shard, version in versions.get(node.name, {}).items() if version < new}
        if older and (node.partitioned or _needed(node, upstream)):
            moved.append(Moved(node.name, min(older.values()), new, tuple(older) if node.partitioned else ()))
        elif (node.name, "") in standing and _is_read_otherwise(node, standing[node.name, ""], upstream):
            moved.append(Moved(node.name, READING - 1, READING, version=VERDICTS))
    return tuple(moved)


def _is_read_otherwise(node: Node, artifact: Artifact, upstream: Upstream) -> bool:
    """Whether an endpoint's judgments are behind these scores, and their verdicts were read by other rules."""
    if node.stage.name != SCORES.name or not read_otherwise(upstream.store, artifact):
        return False
    return ScoresSummary.of(upstream.store.commit_of(artifact)).judge is not None and _needed(node, upstream)


def _commits(store: Store, artifacts: Mapping[Place, Artifact]) -> dict[Place, Commit]:
    """The commit records there are. A ref without a record is made anew whatever the version."""
    try:
        return dict(zip(artifacts, commits_of(store, artifacts.values()), strict=True))
    except (MissingArtifact, CorruptArtifact):  # rare, so that reading one after the other may take its time
        found = {}
        for place, artifact in artifacts.items():
            with suppress(MissingArtifact, CorruptArtifact):
                found[place] = store.commit_of(artifact)
        return found


def _needed(node: Node, upstream: Upstream) -> bool:
    """False for what was needed once and is not now, such as the champion's answers under earlier settings."""
    try:
        node.request(upstream, None)
    except NotNeeded:
        return False
    except (NotBuilt, BadInput, HubUnreachable, MissingArtifact, CorruptArtifact):
        pass
    return True


def told(moved: Iterable[Moved]) -> str:
    """The stages with their versions, for one line."""
    return ", ".join(
        f"{one.stage} ({one.version} {one.old} → {one.new}, {counted(one.artifacts, 'artifact')})" for one in moved
    )


class Noted(BaseModel):
    """Code versions by stage, when they were noted, and by whom."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stages: dict[str, int]
    at: AwareDatetime
    by: str


def _covers(noted: Noted | None, stages: Mapping[str, int]) -> bool:
    known = {} if noted is None else noted.stages
    return all(known.get(stage, 0) >= version for stage, version in stages.items())


class Upgrades:
    """A recipe's `upgrades/<recipe>/accepted.json`, which people write, and `alerted.json`, which its nights write.

    They are two files, so that neither can overwrite what the other one just wrote.
    """

    def __init__(self, store: Store, recipe: str) -> None:
        self.store = store
        self.recipe = recipe

    @property
    def accepted(self) -> Noted | None:
        """What a person accepted last, if anything."""
        return self._read("accepted")

    @property
    def alerted(self) -> Noted | None:
        """What was alerted last, if anything."""
        return self._read("alerted")

    def waiting(self, moved: Iterable[Moved]) -> tuple[Moved, ...]:
        """Those that nobody has accepted up to the version that they have now."""
        moved = tuple(moved)
        accepted = self.accepted if moved else None
        return tuple(one for one in moved if not _covers(accepted, {one.noted: one.new}))

    @property
    def waits(self) -> bool:
        """Whether the last tick that looked found something that nobody has accepted since."""
        alerted = self.alerted
        return alerted is not None and not _covers(self.accepted, alerted.stages)

    def accept(self, moved: Iterable[Moved], by: str, now: datetime) -> Noted:
        """Adds these to what was accepted before, so that stages which moved earlier stay accepted."""
        before = self.accepted
        stages = (before.stages if before else {}) | {one.noted: one.new for one in moved}
        return self._write("accepted", Noted(stages=stages, at=now.replace(microsecond=0), by=by))

    def is_news(self, moved: Iterable[Moved]) -> bool:
        """Whether people were not alerted of these yet."""
        return not _covers(self.alerted, {one.noted: one.new for one in moved})

    def note_alert(self, moved: Iterable[Moved], now: datetime) -> None:
        """Keeps what people were alerted of; of nothing, once nothing waits any more."""
        before = self.alerted
        stages = {one.noted: one.new for one in moved}
        if stages != (before.stages if before else {}):
            self._write("alerted", Noted(stages=stages, at=now, by="nights"))

    def _path(self, name: str) -> str:
        return self.store.path(FOLDER, self.recipe, f"{name}.json")

    def _read(self, name: str) -> Noted | None:
        try:
            return Noted.model_validate_json(self.store.fs.cat_file(self._path(name)))
        except (FileNotFoundError, ValidationError):  # a damaged record: a person is asked once more
            return None

    def _write(self, name: str, noted: Noted) -> Noted:
        self.store.replace(self._path(name), noted.model_dump_json(indent=1).encode())
        return noted
