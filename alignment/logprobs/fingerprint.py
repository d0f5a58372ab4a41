"""The fingerprint: everything about a reference, and about how it is run, that a log-probability depends on."""

from __future__ import annotations

from alignment.digest import json_digest

ATTENTION = "sdpa full"
"""Scaled dot-product attention of every token to all of its sequence before it; padding is never seen."""
SCORER_VERSION = 2
"""Raised when the values can change, in the last bits too: on a CPU a sequence has the same ones in any company."""


def fingerprint(
    weights_digest: str,
    config_digest: str,
    precision: str,
    *,
    attention: str = ATTENTION,
    adapter: str | None = None,
    adapter_merged: bool = True,
    quantisation: str | None = None,
    scorer_version: int = SCORER_VERSION,
) -> str:
    """64 hex digits. Batch size, device, folder and training settings are not in it: they change no value."""
    return json_digest(
        {
            "weights": weights_digest,
            "config": config_digest,
            "precision": precision,
            "attention": attention,
            "adapter": adapter,
            "adapter_merged": adapter_merged,
            "quantisation": quantisation,
            "scorer": scorer_version,
        }
    )
