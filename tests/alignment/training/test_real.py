"""A pretrained model and human preferences, through the real stages from source file to policy."""

from __future__ import annotations

import gzip
import math
from pathlib import Path
from typing import Any

import pytest

from alignment.recipe import Dpo, ModelSource, SftTraining, TokenPolicy
from alignment.stages import execute

pytestmark = pytest.mark.real_data
ROWS = 16


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_policy_starts_as_its_reference_and_learns_what_people_prefer(
    lab: Any, real_data: Path, tmp_path: Path, template: str, precision: str
) -> None:
    from alignment.data.files import pin_file
    from alignment.models.pin import pin_model
    from alignment.stages import policy_checkpoint as dpo
    from alignment.stages import preference_manifest as manifests
    from alignment.stages import preference_shard as shards
    from alignment.stages import reference_logprobs as logprobs
    from alignment.stages import sft_checkpoint as sft

    source = tmp_path / "pairs.jsonl"
    with gzip.open(real_data / "hh_rlhf" / "harmless-base.test.jsonl.gz", "rt", encoding="utf-8") as lines:
        source.write_text("".join(line for line, _ in zip(lines, range(ROWS), strict=False)), encoding="utf-8")
    pin = pin_model(ModelSource(path=str(real_data / "stories260k"), chat_template=template))
    start = execute(sft.STAGE, sft.SftRequest(adopt=pin, settings=SftTraining(), seed=0), lab.store).artifact
    shard = execute(shards.STAGE, shards.ShardRequest(file=pin_file(str(source))), lab.store).artifact
    tokens = TokenPolicy(max_length=160, truncation="keep_end")
    asked = logprobs.ReferenceRequest(
        checkpoint=start, shard=shard, tokens=tokens, precision=precision, batch_tokens=4096
    )
    reference = execute(logprobs.STAGE, asked, lab.store).artifact
    pinned = manifests.ManifestRequest(shards={"a": shard}, references={"a": reference}, held_out_fraction=0.0)
    manifest = execute(manifests.STAGE, pinned, lab.store).artifact
    settings = Dpo(precision=precision, learning_rate=3e-4, batch_size=8, micro_batch_size=4, epochs=5)
    request = dpo.DpoRequest(manifest=manifest, checkpoint=start, settings=settings, tokens=tokens, seed=1)
    summary = execute(dpo.STAGE, request, lab.store).summary
    assert summary["first_loss"] == pytest.approx(math.log(2), abs=1e-5 if precision == "float32" else 2e-2)
    assert summary["history"][-1]["loss"] < 0.6
    assert summary["history"][-1]["accuracy"] > 0.7
    assert (
        summary["rows_trained"] + summary["rows_held_out"] + sum(summary["rows_dropped"].values())
        == (lab.store.commit_of(shard).summary["rows"])
    )
