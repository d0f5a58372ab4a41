"""The artifact store as a Dagster resource."""

from __future__ import annotations

import dagster as dg

from alignment.artifacts import Store
from resources.home import align_home, store_url


class ArtifactStore(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Opens the store at `url` (ALIGN_STORE, or a folder in the project's home)."""

    url: str = ""

    def open(self) -> Store:
        return Store(self.url or store_url(), cache=align_home() / "cache")
