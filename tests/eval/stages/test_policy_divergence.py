"""KL(policy ‖ SFT): the stage against the exact divergence of two small models, and plain log-probs."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from alignment.data.rows import PreferenceRow, content_id, encode, is_held_out, paired_row, write_rows
from alignment.errors import BadInput
from alignment.generation.generator import Generator, Sampling, as_trained
from alignment.models.checkpoint import load_model, load_tokenizer
from alignment.recipe import TokenPolicy
from alignment.stages import Context, Request, Result, Stage, execute
from alignment.stages.preference_manifest import STAGE as MANIFEST
from alignment.stages.preference_manifest import ManifestRequest
from alignment.store import Artifact, Store
from alignment.training.held_out_pairs import HeldOutPair, write_held_out
from eval.stages import policy_divergence as divergence
from eval.stages.policy_divergence import DIVERGENCE_FILE, STAGE, DivergenceRequest, held_out_prompts
from tests import tiny

LETTERS = "abcd"
NARROW = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}
HELD_OUT = 0.8
LENGTH = 3
"""New tokens: few enough to go through all responses there are."""


def tokenizer() -> Any:
    return tiny.letter_tokenizer(LETTERS, pad=False)


def write_model(folder: Path, seed: int, spread: float) -> Path:
    return tiny.write_model(folder, tokenizer(), seed=seed, initializer_range=spread, **NARROW)


class _ShardRequest(Request):
    pass


@dataclass(frozen=True)
class World:
    """Two checkpoints, a manifest, and the rows of it that are held out."""

    store: Store
    policy: Artifact
    sft: Artifact
    manifest: Artifact
    held_out: list[PreferenceRow]
    folders: tuple[Path, Path]

    def request(self, **changes: Any) -> DivergenceRequest:
        plain = {"policy": self.policy, "sft": self.sft, "manifest": self.manifest}
        return DivergenceRequest(**plain | {"seed": 0, "precision": "float32", "batch_tokens": 4096} | changes)

    @property
    def prompts(self) -> list[str]:
        """Distinct held-out prompts, lowest row id first."""
        return list(dict.fromkeys(str(row.prompt) for row in sorted(self.held_out, key=lambda row: row.row_id)))


@pytest.fixture
def world(
    store: Store, commit_checkpoint: Callable[..., Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> World:
    monkeypatch.setattr(divergence, "MOST_NEW_TOKENS", LENGTH)
    rng = random.Random(1)
    prompts = ["".join(letters) for size in (3, 4) for letters in itertools.product(LETTERS, repeat=size)]
    rows = [paired_row(prompt, "a", "b", "x", n) for n, prompt in enumerate(rng.sample(prompts, 120))]
    rows += [paired_row(row.prompt, "c", "d", "x", 0) for row in rows[:60]]

    def shard(request: _ShardRequest, context: Context) -> Result:
        write_rows(context.out / "rows.parquet", rows)
        return Result("rows", {"rows": len(rows), "kind": "paired"})

    made = execute(Stage("preference_shard", 1, _ShardRequest, shard), _ShardRequest(), store).artifact
    pinned = ManifestRequest(shards={"one": made}, held_out_fraction=HELD_OUT)
    held_out = [row for row in rows if is_held_out(encode(row.prompt), row.form, HELD_OUT)]
    assert 60 < len({row.prompt for row in held_out}) < len(held_out)
    pairs = [
        HeldOutPair(row.row_id, content_id({"prompt": row.prompt}), "", "", -1.0, -1.0, -1.0, -1.0, 1, 1)
        for row in held_out
    ]
    folders = write_model(tmp_path / "policy", 1, 0.5), write_model(tmp_path / "sft", 2, 0.5)
    write_held_out(folders[0], pairs)
    policy, sft = (commit_checkpoint(folder.name, folder) for folder in folders)
    return World(store, policy, sft, execute(MANIFEST, pinned, store).artifact, held_out, folders)


def exact(policy: Any, sft: Any, prompt: list[int]) -> float:
    """KL over all responses of at most `LENGTH` tokens, by the chain rule: the divergence of every next token,
    weighted by how often the policy comes to stand there."""
    import torch

    total, standing = 0.0, [([*prompt], 1.0)]
    for _ in range(LENGTH):
        ids = torch.tensor([prefix for prefix, _ in standing])
        with torch.no_grad():
            ours, theirs = (model(input_ids=ids).logits[:, -1].double().log_softmax(-1) for model in (policy, sft))
        following = []
        for (prefix, chance), p, q in zip(standing, ours, theirs, strict=True):
            total += chance * float((p.exp() * (p - q)).sum())
            following += [([*prefix, token], chance * math.exp(p[token])) for token in range(len(p)) if token != 1]
        standing = following
    return total


def test_the_estimate_is_that_of_the_exact_divergence_within_its_interval(world: World) -> None:
    policy, sft = (load_model(folder, "float32") for folder in world.folders)
    ids = [tokenizer()(prompt)["input_ids"] for prompt in world.prompts]
    truth = math.fsum(exact(policy, sft, prompt) for prompt in ids) / len(ids)
    found = [execute(STAGE, world.request(seed=seed), world.store).summary for seed in range(6)]
    assert all(one["prompts"] == len(world.prompts) for one in found)
    low, high = found[0]["intervals"]["kl"]
    assert low < truth < high and low > 0, f"{truth} and {found[0]}"
    together = math.fsum(one["kl"] for one in found) / len(found)
    error = math.sqrt(math.fsum(one["kl_stderr"] ** 2 for one in found)) / len(found)
    assert abs(together - truth) < 2.5 * error < 0.25 * truth
    one = found[0]
    assert one["kl_per_token"] == pytest.approx(one["kl"] / one["tokens_per_response"])
    low, high = one["intervals"]["kl_per_token"]
    assert low < one["kl_per_token"] < high and 1 < one["tokens_per_response"] < LENGTH and 0 < one["ended"] < 1


def test_each_response_has_the_log_probs_that_both_models_give_the_very_ids_drawn(
    world: World, score_alone: Callable[..., float]
) -> None:
    commit = execute(STAGE, world.request(), world.store)
    table = pq.read_table(world.store.fetch(commit.artifact) / DIVERGENCE_FILE)
    policy, sft = (load_model(folder, "float32") for folder in world.folders)
    generator = Generator(policy, load_tokenizer(world.folders[0]), 4096)
    rows = {row.row_id: str(row.prompt) for row in world.held_out}
    assert [rows[row_id] for row_id in table["row_id"].to_pylist()] == world.prompts
    drawn = [Sampling(1.0, 1.0, f"0/policy_divergence/{row_id}") for row_id in table["row_id"].to_pylist()]
    answers = generator.answer(world.prompts, LENGTH, (), drawn)
    for cells, prompt, answer in zip(table.to_pylist(), world.prompts, answers, strict=True):
        ids = tokenizer()(prompt)["input_ids"]
        assert cells["policy_logp"] == pytest.approx(score_alone(policy, ids, answer.ids), abs=1e-4)
        assert cells["sft_logp"] == pytest.approx(score_alone(sft, ids, answer.ids), abs=1e-4)
        assert (cells["tokens"], cells["ended"]) == (len(answer.ids), answer.ids[-1] == 1)
    assert set(table.column_names) == {"row_id", "tokens", "ended", "policy_logp", "sft_logp"}, "no text is kept"


def test_a_policy_that_is_its_sft_checkpoint_has_not_moved(world: World) -> None:
    found = execute(STAGE, world.request(sft=world.policy), world.store).summary
    assert (found["kl"], found["kl_per_token"]) == (0.0, 0.0)
    assert found["intervals"] == {"kl": None, "kl_per_token": None}


def test_the_batch_size_is_not_in_the_key_and_not_in_the_result(world: World) -> None:
    wide, narrow = world.request(), world.request(batch_tokens=1)
    assert STAGE.key(wide) == STAGE.key(narrow)
    context = Context(world.store, world.folders[0], world.folders[1])
    prompts = held_out_prompts(context, world.policy, world.manifest, 20)
    one, other = (divergence._sample_responses(request, context, prompts, load_model) for request in (wide, narrow))
    assert [(row.row_id, row.tokens) for row in one] == [(row.row_id, row.tokens) for row in other]
    assert [row.log_ratio for row in one] == pytest.approx([row.log_ratio for row in other], abs=1e-4)


def test_prompts_are_the_first_distinct_ones_by_row_id(world: World, tmp_path: Path) -> None:
    context = Context(world.store, tmp_path, tmp_path)
    found = held_out_prompts(context, world.policy, world.manifest, 10)
    assert [prompt.content for prompt in found] == world.prompts[:10]


def test_a_plain_prompt_is_a_user_message_where_training_made_it_one() -> None:
    assert as_trained("q", TokenPolicy(plain_text="chat")) == ({"role": "user", "content": "q"},)
    assert as_trained("q", TokenPolicy()) == "q"
    chat = ({"role": "user", "content": "q"},)
    assert as_trained(chat, TokenPolicy(plain_text="chat")) == chat


def test_a_prompt_that_leaves_no_room_is_counted(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(divergence, "MOST_NEW_TOKENS", 28)  # of 32 positions, of which BOS and four letters take 5
    long = sum(len(prompt) == 4 for prompt in world.prompts)
    found = execute(STAGE, world.request(seed=9), world.store).summary
    assert found["prompts"] == len(world.prompts) and long > 0
    assert found["no_room"] == 0, "a response is cut where the context ends while there is room for some"
    monkeypatch.setattr("alignment.generation.generator.LEAST_NEW_TOKENS", 28)
    assert execute(STAGE, world.request(seed=10), world.store).summary["no_room"] == long


def test_without_held_out_pairs_there_is_nothing_to_draw(
    world: World, commit_checkpoint: Callable[..., Artifact]
) -> None:
    commit = execute(STAGE, world.request(policy=commit_checkpoint("none")), world.store)
    assert commit.summary == {"prompts": 0, "no_room": 0}
    assert pq.read_table(world.store.fetch(commit.artifact) / DIVERGENCE_FILE).num_rows == 0


@pytest.mark.parametrize("bad", [0, 1])
def test_a_log_prob_that_is_not_finite_ends_the_stage_and_names_row_and_model(
    world: World, monkeypatch: pytest.MonkeyPatch, bad: int
) -> None:
    """A divergence of NaN would be recorded, and a gate would compare with it."""
    calls = itertools.count()
    plain = divergence.logps
    monkeypatch.setattr(
        divergence, "logps", lambda *what: [math.nan if next(calls) == bad else one for one in plain(*what)[:1]] * 99
    )
    monkeypatch.setattr(divergence, "MOST_PROMPTS", 99)
    with pytest.raises(BadInput, match=r"row \w+: its log-prob .* is nan, which is not finite") as refused:
        execute(STAGE, world.request(), world.store)
    kept = (world.policy, world.sft)[bad]
    assert str(world.store.fetch(kept)) in str(refused.value)
