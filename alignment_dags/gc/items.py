"""What `align gc` decides on, before anything is touched: what goes, what stays and why."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from alignment.store import Commit


@dataclass(frozen=True)
class Doomed:
    """Files of a committed artifact that go, while its commit record stays."""

    commit: Commit
    files: tuple[str, ...]
    why: str

    @property
    def kind(self) -> str:
        return self.commit.kind

    @property
    def key(self) -> str:
        return self.commit.key

    @property
    def bytes(self) -> int:
        return sum(self.commit.files[name].size for name in self.files)

    def plain(self) -> dict[str, Any]:
        about = {"kind": self.kind, "key": self.key, "digest": self.commit.digest}
        return {**about, "files": list(self.files), "bytes": self.bytes, "why": self.why}


@dataclass(frozen=True)
class Kept:
    """An artifact that would go if it were not still in use."""

    kind: str
    key: str
    why: str


@dataclass(frozen=True)
class Leftover:
    """A folder that nothing needs any more, in the store or (`local`) on this machine; `attempt`: one in the store."""

    path: str
    kind: str
    key: str
    bytes: int
    why: str
    local: bool = False
    attempt: bool = False


@dataclass
class Plan:
    """Everything one `align gc` would do."""

    doomed: list[Doomed] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    leftovers: list[Leftover] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        return sum(one.bytes for one in self.doomed) + sum(one.bytes for one in self.leftovers)
