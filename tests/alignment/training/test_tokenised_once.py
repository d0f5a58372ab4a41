from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from alignment.data.rows import write_rows
from alignment.data.tokens import Tokenization
from alignment.recipe import TokenPolicy
from alignment.stages import execute
from alignment.stages.policy_checkpoint import STAGE
from alignment.stages.preference_manifest import STAGE as MANIFEST
from alignment.stages.preference_manifest import ManifestRequest
from alignment.stages.reference_logprobs import STAGE as REFERENCE
from alignment.stages.reference_logprobs import ReferenceRequest
from alignment.training import joining


@pytest.fixture
def tokenised(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of the rows that were tokenised, as often as they were."""
    pairs, seen = Tokenization.pairs, []

    def counted(self: Tokenization, rows: Sequence[Any]) -> list[Any]:
        seen.extend(row.row_id for row in rows)
        return list(pairs(self, rows))

    monkeypatch.setattr(Tokenization, "pairs", counted)
    return seen


def test_reference_and_policy_tokenise_a_row_once_together_and_a_policy_alone_once(
    lab: Any, tokenised: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joining, "ROWS_AT_ONCE", 5)
    checkpoint, rows, tokens = lab.checkpoint(), lab.rows(16), TokenPolicy(max_length=40)
    summary = {"rows": len(rows), "kind": "paired"}
    shard = lab.publish("preference_shard", "s", summary, lambda out: write_rows(out / "rows.parquet", rows))
    request = ReferenceRequest(checkpoint=checkpoint, shard=shard, tokens=tokens, precision="float32", batch_tokens=400)
    reference = execute(REFERENCE, request, lab.store)
    assert sorted(tokenised) == sorted(row.row_id for row in rows)
    asked = ManifestRequest(shards={"one": shard}, references={"one": reference.artifact}, held_out_fraction=0.2)
    manifest = execute(MANIFEST, asked, lab.store).artifact
    trained = execute(STAGE, lab.dpo_request(checkpoint, manifest, tokens=tokens), lab.store)
    assert len(tokenised) == len(rows)
    lab.store.fs.rm(lab.store.path("cache", "token_ids"), recursive=True)
    lab.store.fs.rm(lab.store.path(STAGE.kind), recursive=True)
    tokenised.clear()
    again = execute(STAGE, lab.dpo_request(checkpoint, manifest, tokens=tokens), lab.store)
    assert again.digest == trained.digest
    assert len(tokenised) == len(set(tokenised)) == len(rows) - sum(again.summary["rows_dropped"].values())
    lab.store.fs.rm(lab.store.path(STAGE.kind), recursive=True)
    execute(STAGE, lab.dpo_request(checkpoint, manifest, tokens=tokens), lab.store)
    assert len(tokenised) == len(set(tokenised))
