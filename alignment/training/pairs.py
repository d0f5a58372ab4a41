"""A row as a policy is trained on it: token ids and cached reference log-probs, and what a method's loss takes of rows.

`joining` makes them of a manifest, `row_files` keeps them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from alignment.data.tokens import TokenSequence, with_firsts
from alignment.logprobs.keys import whole_of
from alignment.methods import Method
from alignment.methods.method import column

IDS = pa.list_(pa.int32())
PAIRS = pa.schema(
    [
        ("row_id", pa.string()),
        ("prompt_id", pa.string()),
        ("chosen_prompt_ids", IDS),
        ("chosen_ids", IDS),
        ("rejected_prompt_ids", IDS),
        ("rejected_ids", IDS),
        ("ref_chosen_logp", pa.float64()),
        ("ref_rejected_logp", pa.float64()),
        ("longest", pa.int32()),
    ]
)
FIRSTS = [("ref_chosen_first_logp", pa.float64()), ("ref_rejected_first_logp", pa.float64())]
"""What a method that weighs the first tokens of both sides alone reads beside `PAIRS`."""
NUMBERS = [("weight", pa.float64()), ("target_margin", pa.float64())]
"""What a method that reads a pair's own numbers takes of the data (`Method.numbers`)."""
COMPLETIONS = pa.schema(
    [
        ("row_id", pa.string()),
        ("prompt_id", pa.string()),
        ("prompt_ids", IDS),
        ("completion_ids", IDS),
        ("partner_ids", IDS),
        ("label", pa.bool_()),
        ("ref_completion_logp", pa.float64()),
        ("ref_partner_logp", pa.float64()),
        ("longest", pa.int32()),
    ]
)


@dataclass(frozen=True)
class PolicyPair:
    """One pair as the trainer takes it; log-probs in nats, summed over each completion, NaN without a reference."""

    row_id: str
    chosen: TokenSequence
    rejected: TokenSequence
    ref_chosen_logp: float
    ref_rejected_logp: float
    prompt_id: str
    """The same for pairs of one prompt."""
    ref_chosen_first_logp: float = math.nan
    """Of as many first tokens as the shorter side has, for methods that ask for them; else NaN."""
    ref_rejected_first_logp: float = math.nan
    weight: float = math.nan
    """Its weight from the data, for methods that ask for it; else NaN, as `target_margin`."""
    target_margin: float = math.nan

    @property
    def sequences(self) -> dict[str, TokenSequence]:
        """Its sequences by name."""
        return {"chosen": self.chosen, "rejected": self.rejected}

    @property
    def longest(self) -> int:
        """Tokens of the longer side."""
        return max(len(self.chosen), len(self.rejected))

    def cells(self) -> dict[str, Any]:
        """A row of `PAIRS`. Each side has its own prompt: where one ends depends on the completion that follows it."""
        return {
            "row_id": self.row_id,
            "prompt_id": self.prompt_id,
            "chosen_prompt_ids": self.chosen.prompt_ids,
            "chosen_ids": self.chosen.stored_ids,
            "rejected_prompt_ids": self.rejected.prompt_ids,
            "rejected_ids": self.rejected.stored_ids,
            "ref_chosen_logp": self.ref_chosen_logp,
            "ref_rejected_logp": self.ref_rejected_logp,
            "longest": self.longest,
            "ref_chosen_first_logp": self.ref_chosen_first_logp,
            "ref_rejected_first_logp": self.ref_rejected_first_logp,
            "weight": self.weight,
            "target_margin": self.target_margin,
        }

    @classmethod
    def of(cls, cells: Mapping[str, Any]) -> PolicyPair:
        """The inverse of `cells`."""
        return cls(
            cells["row_id"],
            TokenSequence.of_stored(tuple(cells["chosen_prompt_ids"]), tuple(cells["chosen_ids"])),
            TokenSequence.of_stored(tuple(cells["rejected_prompt_ids"]), tuple(cells["rejected_ids"])),
            cells["ref_chosen_logp"],
            cells["ref_rejected_logp"],
            cells["prompt_id"],
            *(cells.get(name, math.nan) for name, _ in FIRSTS + NUMBERS),
        )


@dataclass(frozen=True)
class PolicyCompletion:
    """One labelled completion as the trainer takes it; log-probs as a `PolicyPair` has them."""

    row_id: str
    completion: TokenSequence
    partner: TokenSequence | None
    """The same prompt with the partner's completion; None for a row that is alone in its shard."""
    label: bool
    ref_completion_logp: float
    ref_partner_logp: float
    prompt_id: str
    """The same for completions of one prompt."""

    @property
    def sequences(self) -> dict[str, TokenSequence]:
        """Its sequences by name."""
        partner = {} if self.partner is None else {"partner": self.partner}
        return {"completion": self.completion, **partner}

    @property
    def longest(self) -> int:
        """Tokens of the longer sequence."""
        return max(map(len, self.sequences.values()))

    def cells(self) -> dict[str, Any]:
        """A row of `COMPLETIONS`."""
        return {
            "row_id": self.row_id,
            "prompt_id": self.prompt_id,
            "prompt_ids": self.completion.prompt_ids,
            "completion_ids": self.completion.stored_ids,
            "partner_ids": None if self.partner is None else self.partner.stored_ids,
            "label": self.label,
            "ref_completion_logp": self.ref_completion_logp,
            "ref_partner_logp": self.ref_partner_logp,
            "longest": self.longest,
        }

    @classmethod
    def of(cls, cells: Mapping[str, Any]) -> PolicyCompletion:
        """The inverse of `cells`."""
        prompt, partner = tuple(cells["prompt_ids"]), cells["partner_ids"]
        return cls(
            cells["row_id"],
            TokenSequence.of_stored(prompt, tuple(cells["completion_ids"])),
            None if partner is None else TokenSequence.of_stored(prompt, tuple(partner)),
            cells["label"],
            cells["ref_completion_logp"],
            cells["ref_partner_logp"],
            cells["prompt_id"],
        )


PolicyRow = PolicyPair | PolicyCompletion


def schema_of(method: Method) -> pa.Schema:
    """The columns of a method's rows."""
    if method.data == "unpaired":
        return COMPLETIONS
    more = [*(FIRSTS if method.first_tokens else ()), *(each for each in NUMBERS if each[0] in method.numbers)]
    return pa.schema([*PAIRS, *(pa.field(*field) for field in more)])


def sequences_of(method: Method, row: PolicyRow) -> dict[str, TokenSequence]:
    """The sequences of a row whose log-probs the method reads, by name."""
    return with_firsts(row.sequences) if method.first_tokens else row.sequences


def with_reference(row: PolicyRow, logps: Mapping[str, float]) -> PolicyRow:
    """The row with reference log-probs by the name of their sequence."""
    changes: dict[str, Any] = {f"ref_{name}_logp": logp for name, logp in logps.items()}
    return replace(row, **changes)


Score = Callable[..., list[float]]
"""Log-probs in nats of completions given their prompts, by the pass that trains them: `logps` of the scorer without its
model and budget."""


def score_rows(method: Method, rows: Sequence[PolicyRow], score: Score) -> list[dict[str, float]]:
    """The log-probs of each row's `sequences_of`, by name; those of first tokens out of their whole's forward."""
    named = [sequences_of(method, row) for row in rows]
    flat, wholes = list[TokenSequence](), list[int]()
    for sequences in named:
        places = {name: len(flat) + place for place, name in enumerate(sequences)}
        flat += sequences.values()
        wholes += [places[whole_of(name)] for name in sequences]
    logps = iter(score(flat, wholes) if method.first_tokens else score(flat))
    return [{name: next(logps) for name in sequences} for sequences in named]


def policy_logps(method: Method, rows: Sequence[PolicyRow], logps: Sequence[float]) -> tuple[Any, Any]:
    """What the method's loss takes of rows that are measured together, and its constants.

    `logps` (nats) are those of each row's `sequences_of` in turn.
    """
    by_name: dict[str, list[float]] = defaultdict(list)
    ratios: list[float] = []
    remaining = iter(logps)
    for row in rows:
        for name in sequences_of(method, row):
            by_name[name].append(next(remaining))
            if name in method.coupled:
                ratios.append(by_name[name][-1] - getattr(row, f"ref_{name}_logp"))
    policy = {name: column(values) for name, values in by_name.items() if name not in method.coupled}
    return method.logps.of(rows, policy), method.prepare(column(ratios)) if method.coupled else None


def reference_logps(method: Method, rows: Sequence[PolicyRow]) -> Any:
    """What the method's loss takes of rows whose policy is their reference."""
    return policy_logps(
        method, rows, [getattr(row, f"ref_{name}_logp") for row in rows for name in sequences_of(method, row)]
    )[0]
