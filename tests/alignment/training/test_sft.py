"""Supervised fine-tuning against independent oracles."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

from alignment.errors import BadInput
from alignment.recipe import TokenPolicy
from alignment.stages import execute
from alignment.stages.sft_checkpoint import STAGE, SftRequest


def sequences(lab: Any, base: Any, dataset: Any, name: str) -> list[Any]:
    from alignment.data.rows import read_sft_rows
    from alignment.data.tokens import Tokenization
    from alignment.models.checkpoint import load_tokenizer

    tokens = Tokenization(load_tokenizer(lab.store.fetch(base)), TokenPolicy(max_length=64))
    return [
        tokens.completion(row.form, row.prompt, row.completion)
        for row in read_sft_rows(lab.store.fetch(dataset) / name)
    ]


def token_loss(model: Any, rows: list[Any], score_alone: Any) -> float:
    """Nats a completion token over all rows, each scored alone."""
    nats = sum(score_alone(model, row.prompt_ids, row.completion_ids) for row in rows)
    return -nats / sum(len(row.completion_ids) for row in rows)


def test_losses_are_nats_a_completion_token_and_fall(lab: Any, score_alone: Any) -> None:
    from alignment.models.checkpoint import load_model

    base, dataset = lab.checkpoint(), lab.sft_dataset(21, held_out=5)
    request = lab.sft_request(base, dataset, batch_size=24, micro_batch_size=4, epochs=4, eval_steps=2)
    commit = execute(STAGE, request, lab.store)
    start, end = (load_model(lab.store.fetch(artifact), "float32") for artifact in (base, commit.artifact))
    train, held_out = (sequences(lab, base, dataset, f"{name}.parquet") for name in ("train", "held_out"))
    summary = commit.summary
    in_order = [record for record in summary["history"] if "loss" in record]
    assert summary["held_out_loss"] == pytest.approx(token_loss(end, held_out, score_alone), abs=1e-4)
    assert in_order[0]["loss"] == pytest.approx(token_loss(start, train, score_alone), rel=0.1)
    assert token_loss(end, train, score_alone) < token_loss(start, train, score_alone) - 0.2
    assert (summary["steps"], summary["rows_trained"], summary["rows_dropped"]) == (4, 21, 0)
    assert [record["step"] for record in summary["history"] if "held_out_loss" in record] == [2, 4]


def test_the_first_step_sees_exactly_the_first_rows_of_the_order(lab: Any, score_alone: Any) -> None:
    from alignment.data.rows import read_sft_rows
    from alignment.models.checkpoint import load_model
    from alignment.training.arguments import training_order

    base, dataset = lab.checkpoint(kind="qwen2"), lab.sft_dataset(13)
    summary = execute(STAGE, lab.sft_request(base, dataset, batch_size=6, micro_batch_size=2), lab.store).summary
    train = sequences(lab, base, dataset, "train.parquet")
    ids = [row.row_id for row in read_sft_rows(lab.store.fetch(dataset) / "train.parquet")]
    order = training_order(ids, dataset.digest, 3, 1.0)
    model = load_model(lab.store.fetch(base), "float32")
    expected = token_loss(model, [train[index] for index in order[:6]], score_alone)
    assert summary["history"][0]["loss"] == pytest.approx(expected, abs=1e-4)


def test_the_best_weights_are_kept_when_patience_ends(lab: Any, score_alone: Any) -> None:
    from alignment.models.checkpoint import load_model

    base, dataset = lab.checkpoint(), lab.sft_dataset(12, held_out=6)
    request = lab.sft_request(base, dataset, epochs=30, eval_steps=1, patience=2, learning_rate=5e-2)
    commit = execute(STAGE, request, lab.store)
    summary = commit.summary
    seen = {record["step"]: record["held_out_loss"] for record in summary["history"] if "held_out_loss" in record}
    best = min(seen, key=lambda step: (seen[step], step))
    assert summary["stopped_early"] and summary["steps"] == best + 2
    assert summary["best_step"] == best and summary["held_out_loss"] == pytest.approx(seen[best], rel=1e-4)
    kept = load_model(lab.store.fetch(commit.artifact), "float32")
    held_out = sequences(lab, base, dataset, "held_out.parquet")
    assert token_loss(kept, held_out, score_alone) == pytest.approx(seen[best], abs=1e-4)


def test_lora_in_a_lower_precision_leaves_the_stored_weights_unrounded(lab: Any) -> None:
    import torch
    from safetensors.torch import load_file

    base, dataset = lab.checkpoint(kind="qwen2"), lab.sft_dataset(8)
    request = lab.sft_request(base, dataset, precision="bfloat16", lora={"rank": 2, "target_modules": ["q_proj"]})
    commit = execute(STAGE, request, lab.store)
    before, after = (load_file(lab.store.fetch(a) / "model.safetensors") for a in (base, commit.artifact))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys()
    assert changed == {f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1)}


def test_the_checkpoint_keeps_configuration_tokenizer_and_dtype_of_its_base(lab: Any, template: str) -> None:
    base, dataset = lab.checkpoint(template=template, dtype="bfloat16"), lab.sft_dataset(6, chat=True)
    commit = execute(STAGE, lab.sft_request(base, dataset, precision="bfloat16"), lab.store)
    start = lab.store.commit_of(base).summary
    for name in ("config_digest", "tokenizer_digest"):
        assert commit.summary[name] == start[name]
    assert commit.summary["weights_digest"] != start["weights_digest"]
    for name in ("parameters", "architecture", "vocab_size", "max_positions", "has_chat_template"):
        assert commit.summary[name] == start[name]


def test_conversations_without_a_chat_template_are_bad_input(lab: Any) -> None:
    base, dataset = lab.checkpoint(), lab.sft_dataset(4, chat=True)
    with pytest.raises(BadInput, match=r"base_model\.chat_template"):
        execute(STAGE, lab.sft_request(base, dataset), lab.store)


def test_rows_that_are_all_too_long_are_bad_input(lab: Any) -> None:
    base, dataset = lab.checkpoint(), lab.sft_dataset(4)
    with pytest.raises(BadInput, match=r"no rows left after the token policy \(too long: 4\)"):
        execute(STAGE, lab.sft_request(base, dataset, max_length=4), lab.store)
    with pytest.raises(BadInput, match=r"sft\.max_length.*96 positions"):
        execute(STAGE, lab.sft_request(base, dataset, max_length=97), lab.store)


MOVING = (
    "{% if messages[0].role == 'system' and messages[-1].role == 'user' %}{{ messages[0].content }}{% endif %}"
    "{% for m in messages if m.role != 'system' %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
)
"""Like Mistral's template: the system message is there until an answer follows."""


def test_conversations_that_the_template_rewrites_stop_the_run_until_the_token_policy_says_how(lab: Any) -> None:
    from alignment.data.rows import sft_row, write_sft_rows

    told = ({"role": "system", "content": "be kind"}, {"role": "user", "content": "a"})
    rows = [sft_row(told, ({"role": "assistant", "content": letter},), "f", n) for n, letter in enumerate("bcde")]

    def fill(out: Any) -> None:
        write_sft_rows(out / "train.parquet", rows)
        write_sft_rows(out / "held_out.parquet", [])

    base, dataset = lab.checkpoint(template=MOVING), lab.publish("sft_dataset", "d", {}, fill)
    request = lab.sft_request(base, dataset)
    with pytest.raises(BadInput, match=r"tokens\.system.*the base model.*4 of 4 rows \(100\.0%\).*first_user or drop"):
        execute(STAGE, request, lab.store)
    merged = request.model_copy(update={"tokens": TokenPolicy(system="first_user")})
    assert execute(STAGE, merged, lab.store).summary["rows_trained"] == 4


def test_only_what_writes_rows_is_in_the_key(lab: Any) -> None:
    request = lab.sft_request(lab.checkpoint(), lab.sft_dataset(4))
    key = STAGE.key(request)

    def key_with(tokens: TokenPolicy) -> str:
        return STAGE.key(request.model_copy(update={"tokens": tokens.writing()}))

    assert key_with(TokenPolicy(max_length=7, max_prompt_length=3, truncation="keep_end")) == key
    assert key_with(TokenPolicy(system="drop")) != key
    assert key_with(TokenPolicy(max_dropped=0.5)) != key  # what is made with a larger allowance is no answer to a less
    assert "tokens" not in request.model_dump(mode="json")


def test_a_padding_id_without_an_embedding_trains_as_any_other(lab: Any) -> None:
    import json

    from alignment.models.checkpoint import checkpoint_summary, digest_checkpoint, load_tokenizer

    dataset = lab.sft_dataset(6)
    plain = lab.checkpoint()
    folder = lab.root / "padded"
    shutil.copytree(lab.store.fetch(plain), folder, ignore=shutil.ignore_patterns("_COMMIT.json"))
    tokenizer = load_tokenizer(folder)
    tokenizer.add_special_tokens({"pad_token": "<beyond>"})
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    assert tokenizer.pad_token_id >= config["vocab_size"]
    (folder / "config.json").write_text(json.dumps(config | {"pad_token_id": tokenizer.pad_token_id}))
    beyond = lab.adopt(folder, digest_checkpoint(folder), checkpoint_summary(folder))
    # the order of rows follows the data set and the seed, so both runs take the same steps
    made = [execute(STAGE, lab.sft_request(base, dataset), lab.store).summary for base in (plain, beyond)]
    assert made[0]["weights_digest"] == made[1]["weights_digest"]


def test_a_tokenizer_with_more_ids_than_embeddings_is_one_line(lab: Any) -> None:
    from alignment.models.checkpoint import checkpoint_summary, digest_checkpoint, load_tokenizer

    folder = lab.root / "added"
    base = lab.checkpoint()
    shutil.copytree(lab.store.fetch(base), folder, ignore=shutil.ignore_patterns("_COMMIT.json"))
    tokenizer = load_tokenizer(folder)
    tokenizer.add_tokens(["a"])
    tokenizer.add_tokens([f"{letter}{letter}" for letter in "bcdefghij"] + ["a "])
    tokenizer.save_pretrained(folder)
    added = lab.adopt(folder, digest_checkpoint(folder), checkpoint_summary(folder))
    with pytest.raises(
        BadInput, match=r"the tokenizer gives id \d+ \('.+'\), and the model has embeddings for 36 only"
    ):
        execute(STAGE, lab.sft_request(added, lab.sft_dataset(20)), lab.store)


def test_an_adopted_checkpoint_is_what_it_was_and_no_setting_is_in_its_key(lab: Any) -> None:
    from alignment.models.pin import pin_model
    from alignment.recipe import ModelSource, SftTraining

    base = lab.checkpoint()
    pin = pin_model(ModelSource(path=str(lab.store.fetch(base))))
    request = SftRequest(adopt=pin, settings=SftTraining(), seed=1)
    other = SftRequest(adopt=pin, settings=SftTraining(learning_rate=1.0), seed=2, world_size=8)
    commit = execute(STAGE, request, lab.store)
    assert commit.digest == base.digest
    described = lab.store.commit_of(base).summary
    assert {name: commit.summary[name] for name in described} == described
    assert STAGE.key(request) == STAGE.key(other)
