"""Preference methods: what each asks of its data, and its loss as a pure function of log-probabilities."""

TAKES = {"dpo": "paired"}
"""Method to kind, as `alignment.data.validate` tells kinds apart."""
KINDS = {"paired": "a chosen and a rejected completion", "unpaired": "a completion with its label"}


def wrong_kind(method: str, kind: str) -> str | None:
    """Why a method cannot train on rows of a kind, and which methods can; None where it can."""
    wanted = TAKES[method]
    if kind == wanted:
        return None
    others = [name for name, taken in TAKES.items() if taken == kind]
    able = f"{', '.join(others)} would take them" if others else f"no method takes {kind} rows yet"
    return f"holds {kind} rows ({KINDS[kind]}), and {method} takes {wanted} ones ({KINDS[wanted]}); {able}"
