"""The artifact store as a Dagster resource."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
from fsspec.implementations.memory import MemoryFileSystem

from alignment.errors import BadInput
from alignment.store import Store
from resources.home import align_home, store_url


class ArtifactStore(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Opens the store at `url` (ALIGN_STORE, or a folder in the project's home)."""

    url: str = ""

    def open(self) -> Store:
        """The store, ready to write to; raises `BadInput` naming a place that cannot be used."""
        url = self.url or store_url()
        store = Store(url, cache=align_home() / "cache")
        if isinstance(store.fs, MemoryFileSystem):
            raise BadInput("a store in memory belongs to one process, and every step is a process of its own", file=url)
        if store.is_local:
            try:
                Path(store.root).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise BadInput(f"cannot be used as an artifact store: {error.strerror}", file=url) from error
        return store
