"""`held_out.parquet`: what a policy and its reference make of every measured held-out pair, one row a pair."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from alignment.data.rows import write_records

HELD_OUT_FILE = "held_out.parquet"
SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("prompt_id", pa.string()),
        ("chosen_key", pa.string()),
        ("rejected_key", pa.string()),
        ("chosen_logp", pa.float64()),
        ("rejected_logp", pa.float64()),
        ("ref_chosen_logp", pa.float64()),
        ("ref_rejected_logp", pa.float64()),
        ("chosen_tokens", pa.int32()),
        ("rejected_tokens", pa.int32()),
    ]
)


@dataclass(frozen=True)
class HeldOutPair:
    """Log-probs in nats, summed over each completion's tokens; `prompt_id` is the same for pairs of one prompt.

    The keys name what was scored: the reference, the prompt's ids and the completion's (`sequence_key`, hex). Two
    policies with the same keys were measured on the same sequences, against the same reference.
    """

    row_id: str
    prompt_id: str
    chosen_key: str
    rejected_key: str
    chosen_logp: float
    rejected_logp: float
    ref_chosen_logp: float
    ref_rejected_logp: float
    chosen_tokens: int
    rejected_tokens: int

    @property
    def keys(self) -> tuple[str, str]:
        return self.chosen_key, self.rejected_key

    @property
    def chosen_ratio(self) -> float:
        """log π(chosen) − log π_ref(chosen)."""
        return self.chosen_logp - self.ref_chosen_logp

    @property
    def rejected_ratio(self) -> float:
        """log π(rejected) − log π_ref(rejected)."""
        return self.rejected_logp - self.ref_rejected_logp


def prefers(chosen: float, rejected: float) -> float:
    """1, 0, or a half for a tie."""
    return 0.5 if chosen == rejected else float(chosen > rejected)


def write_held_out(folder: Path, pairs: Iterable[HeldOutPair]) -> None:
    """Writes the file, by row id; it is there, with no row in it, when nothing was held out."""
    rows = (asdict(pair) for pair in sorted(pairs, key=lambda pair: pair.row_id))
    write_records(folder / HELD_OUT_FILE, SCHEMA, rows)


def parse_held_out(data: bytes) -> list[HeldOutPair]:
    """The rows of such a file, by row id."""
    return [HeldOutPair(**cells) for cells in pq.read_table(pa.BufferReader(data)).to_pylist()]
