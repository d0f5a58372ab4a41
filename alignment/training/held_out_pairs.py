"""`held_out.parquet`: what a policy and its reference make of every measured held-out row: a pair, or a completion with
its label."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
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
FIRSTS = [(f"{of}{side}_first_logp", pa.float64()) for of in ("", "ref_") for side in ("chosen", "rejected")]
"""Beside `SCHEMA` for methods that read the sums over the first min(lengths) tokens as well."""
COMPLETIONS = pa.schema(
    [
        ("row_id", pa.string()),
        ("prompt_id", pa.string()),
        ("label", pa.bool_()),
        ("completion_key", pa.string()),
        ("partner_key", pa.string()),
        ("completion_logp", pa.float64()),
        ("partner_logp", pa.float64()),
        ("ref_completion_logp", pa.float64()),
        ("ref_partner_logp", pa.float64()),
        ("completion_tokens", pa.int32()),
        ("partner_tokens", pa.int32()),
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
    chosen_first_logp: float | None = None
    rejected_first_logp: float | None = None
    ref_chosen_first_logp: float | None = None
    ref_rejected_first_logp: float | None = None

    @property
    def keys(self) -> tuple[str, str]:
        """The sequence keys of both sides."""
        return self.chosen_key, self.rejected_key

    @property
    def chosen_ratio(self) -> float:
        """log π(chosen) − log π_ref(chosen)."""
        return self.chosen_logp - self.ref_chosen_logp

    @property
    def rejected_ratio(self) -> float:
        """log π(rejected) − log π_ref(rejected)."""
        return self.rejected_logp - self.ref_rejected_logp


@dataclass(frozen=True)
class HeldOutCompletion:
    """The same of a completion with its label, and of its partner's completion behind the prompt, if it has one."""

    row_id: str
    prompt_id: str
    label: bool
    completion_key: str
    partner_key: str | None
    completion_logp: float
    partner_logp: float | None
    ref_completion_logp: float
    ref_partner_logp: float | None
    completion_tokens: int
    partner_tokens: int | None

    @property
    def keys(self) -> tuple[str, str | None]:
        """The sequence keys of the completion and of its partner, None where it has none."""
        return self.completion_key, self.partner_key

    @property
    def ratio(self) -> float:
        """log π(completion) − log π_ref(completion)."""
        return self.completion_logp - self.ref_completion_logp


HeldOutRow = HeldOutPair | HeldOutCompletion


def partner_ratios(rows: Iterable[HeldOutRow]) -> list[float]:
    """log π − log π_ref of the partners' completions, whose mean estimates the divergence; none of pairs."""
    return [
        row.partner_logp - row.ref_partner_logp
        for row in rows
        if isinstance(row, HeldOutCompletion) and row.partner_logp is not None and row.ref_partner_logp is not None
    ]


def prefers(chosen: float, rejected: float) -> float:
    """1, 0, or a half for a tie."""
    return 0.5 if chosen == rejected else float(chosen > rejected)


def write_held_out(folder: Path, rows: Sequence[HeldOutRow]) -> None:
    """Writes the file, by row id; it is there, with no row in it, when nothing was held out."""
    schema = SCHEMA
    if rows and isinstance(rows[0], HeldOutCompletion):
        schema = COMPLETIONS
    elif rows and isinstance(rows[0], HeldOutPair) and rows[0].chosen_first_logp is not None:
        schema = pa.schema([*SCHEMA, *(pa.field(*field) for field in FIRSTS)])
    cells = (vars(row) for row in sorted(rows, key=lambda row: row.row_id))  # asdict would copy every cell deeply
    write_records(folder / HELD_OUT_FILE, schema, cells)


def parse_held_out(data: bytes) -> list[HeldOutRow]:
    """The rows of such a file, by row id."""
    table = pq.read_table(pa.BufferReader(data))
    kind = HeldOutCompletion if "label" in table.column_names else HeldOutPair
    return [kind(**cells) for cells in table.to_pylist()]
