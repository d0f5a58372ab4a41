from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from alignment.errors import BadInput
from alignment.logprobs.files import reference_file
from alignment.store import Store

Make = Callable[..., Path]
Oracle = Callable[[Path, str, str], tuple[float, int]]
HH_TURN = "\n\nAssistant:"


def write(path: Path, records: Iterable[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def pair(prompt: str, chosen: str, rejected: str) -> dict[str, str]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def assert_scored(out: Path, folder: Path, expected: list[tuple[str, str, str]], oracle: Oracle) -> None:
    """The file's rows are the expected texts in order, and their values the oracle's."""
    rows = pq.read_table(out).to_pylist()
    assert len(rows) == len(expected)
    for row, (prompt, *sides) in zip(rows, expected, strict=True):
        for side, completion in zip(("chosen", "rejected"), sides, strict=True):
            logp, tokens = oracle(folder, prompt, completion)
            assert row[f"{side}_tokens"] == tokens
            assert row[f"{side}_logp"] == pytest.approx(logp, rel=1e-6)


def test_rows_come_out_in_the_files_order_and_repeated_ones_repeated(
    make_model: Make, oracle: Oracle, store: Store, tmp_path: Path, forwarded: Any
) -> None:
    texts = [("b: ", "x", "yy"), ("a: ", "z", "w"), ("b: ", "x", "yy"), ("b: ", "x", "other")]
    pairs = write(tmp_path / "pairs.jsonl", [pair(*text) for text in texts])
    out = tmp_path / "new" / "out.parquet"
    told = reference_file(make_model(), pairs, out, store=store)
    assert_scored(out, make_model(), texts, oracle)
    assert pq.read_schema(out).names == [
        "row_id",
        "chosen_logp",
        "rejected_logp",
        "chosen_tokens",
        "rejected_tokens",
    ]
    assert (told["rows"], told["sequences"], told["cache_hits"], told["scored"]) == (4, 5, 0, 5)
    assert len(forwarded.lengths) == 5


def test_a_second_call_is_all_hits_and_a_new_row_costs_its_own_sequences(
    make_model: Make, store: Store, tmp_path: Path, forwarded: Any
) -> None:
    model, out = make_model(), tmp_path / "out.parquet"
    records = [pair(f"{number}: ", "yes", "no") for number in range(6)]
    reference_file(model, write(tmp_path / "a.jsonl", records), out, store=store)
    rows = pq.read_table(out).to_pylist()
    forwarded.lengths.clear()
    again = reference_file(model, write(tmp_path / "b.jsonl", records[::-1]), out, store=store)
    assert (again["cache_hits"], again["scored"], again["tokens"], forwarded.lengths) == (12, 0, 0, [])
    assert pq.read_table(out).to_pylist() == rows[::-1]
    more = reference_file(model, write(tmp_path / "c.jsonl", [*records, pair("9: ", "a", "b")]), out, store=store)
    assert (more["cache_hits"], more["scored"], len(forwarded.lengths)) == (12, 2, 2)


def test_a_copy_of_the_model_elsewhere_is_the_same_reference_and_changed_weights_are_not(
    make_model: Make, store: Store, tmp_path: Path
) -> None:
    pairs, out = write(tmp_path / "pairs.jsonl", [pair("a: ", "x", "y")]), tmp_path / "out.parquet"
    first, other = make_model(), make_model(seed=1)
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in first.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    scored = [reference_file(folder, pairs, out, store=store)["scored"] for folder in (first, copy, other)]
    assert scored == [2, 0, 2]
    weights = copy / "model.safetensors"
    weights.write_bytes((other / "model.safetensors").read_bytes())
    assert reference_file(copy, pairs, out, store=store)["scored"] == 0  # now the other model, known already


def test_what_is_not_in_the_output_is_counted_by_reason(make_model: Make, store: Store, tmp_path: Path) -> None:
    records = [pair("a: ", "x", "y"), pair("b: ", "x" * 200, "y"), {"prompt": "c"}, pair("d: ", "", "y")]
    records.append({"prompt": "e", "completion": "f", "label": True})  # type: ignore[dict-item]
    told = reference_file(make_model(), write(tmp_path / "pairs.jsonl", records), tmp_path / "out.parquet", store=store)
    assert told["rows"] == 1
    assert told["dropped"] == {"too long": 1}
    assert sum(told["quarantined"].values()) == 3
    assert told["quarantined"]["empty chosen"] == 1


def test_a_log_prob_that_is_not_finite_is_kept_nowhere_and_row_and_model_are_named(
    make_model: Make, store: Store, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    folder, out = make_model(), tmp_path / "out.parquet"
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] *= 1e3  # all finite, and logits beyond what float32 holds
    weights["lm_head.weight"] *= 1e38
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    pairs = write(tmp_path / "pairs.jsonl", [pair("a: ", "x", "y")])
    with pytest.raises(BadInput, match=r"row \w+ \(pairs\.jsonl, row 1\): its log-prob .* is not finite") as refused:
        reference_file(folder, pairs, out, store=store)
    assert str(folder) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not out.exists()
    assert not list(Path(store.url).rglob("cache/reference_logprobs/**/*.parquet"))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("remembered", [False, True])
def test_weights_that_are_not_finite_are_refused_by_name(
    make_model: Make, store: Store, tmp_path: Path, bad: float, remembered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file, save_file

    folder = make_model()
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 2] = bad
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    pairs = write(tmp_path / "pairs.jsonl", [pair("a: ", "x", "y")])
    if remembered:  # as an older version left it, which took the digest and did not look
        monkeypatch.setattr("alignment.models.checkpoint.is_finite", lambda *_: True)
    with pytest.raises(BadInput, match=r"model\.layers\.1\.mlp\.up_proj\.weight holds values that are not finite"):
        reference_file(folder, pairs, tmp_path / "out.parquet", store=store)


def test_truncation_keeps_long_rows(make_model: Make, store: Store, tmp_path: Path) -> None:
    pairs = write(tmp_path / "pairs.jsonl", [pair("p" * 50, "x" * 9, "y")])
    tokens = {"max_length": 32, "truncation": "keep_end"}
    told = reference_file(make_model(), pairs, tmp_path / "out.parquet", store=store, tokens=tokens)
    assert (told["rows"], told["dropped"]) == (1, {})
    assert pq.read_table(tmp_path / "out.parquet")["chosen_tokens"].to_pylist() == [10]


def test_every_token_setting_of_a_recipe_has_an_option() -> None:
    from inspect import signature

    from alignment.recipe import TokenPolicy
    from alignment_dags.cli.files import reference

    assert set(TokenPolicy.model_fields) <= set(signature(reference).parameters)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tokens": {"truncation": "sideways"}}, r"tokens\.truncation"),
        ({"tokens": {"max_length": 1}}, r"tokens\.max_length"),
        ({"tokens": {"max_length": 129}}, r"tokens\.max_length"),
        ({"precision": "int3"}, "unknown precision"),
    ],
)
def test_settings_that_make_no_sense_are_bad_input(
    make_model: Make, store: Store, tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    pairs = write(tmp_path / "pairs.jsonl", [pair("a: ", "x", "y")])
    with pytest.raises(BadInput, match=message):
        reference_file(make_model(), pairs, tmp_path / "out.parquet", store=store, **given)


def test_conversations_under_a_model_without_a_chat_template_are_bad_input(
    make_model: Make, store: Store, tmp_path: Path
) -> None:
    sides = {
        name: [{"role": role, "content": name}]
        for name, role in (("prompt", "user"), ("chosen", "assistant"), ("rejected", "assistant"))
    }
    with pytest.raises(BadInput, match=r"base_model\.chat_template"):
        reference_file(make_model(), write(tmp_path / "c.jsonl", [sides]), tmp_path / "out.parquet", store=store)


def test_a_file_or_folder_that_is_not_there_is_bad_input(make_model: Make, store: Store, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such file"):
        reference_file(make_model(), tmp_path / "none.jsonl", tmp_path / "out.parquet", store=store)
    pairs = write(tmp_path / "pairs.jsonl", [pair("a: ", "x", "y")])
    for model, told in ((tmp_path / "none", "no such model folder"), (pairs, "is a file; a model is a folder")):
        with pytest.raises(BadInput, match=told):
            reference_file(model, pairs, tmp_path / "out.parquet", store=store)


@pytest.mark.real_data
def test_human_preference_pairs_under_a_real_model_agree_with_the_oracle(
    real_data: Path, oracle: Oracle, store: Store, tmp_path: Path
) -> None:
    with gzip.open(real_data / "hh_rlhf" / "harmless-base.test.jsonl.gz", "rt", encoding="utf-8") as lines:
        records = [json.loads(line) for _, line in zip(range(60), lines, strict=False)]
    model = real_data / "stories260k"
    tokenizer = AutoTokenizer.from_pretrained(model)
    kept = []
    for record in records:
        cut = record["chosen"].rindex(HH_TURN) + len(HH_TURN)
        text = (record["chosen"][:cut], record["chosen"][cut:], record["rejected"][cut:])
        lengths = [len(tokenizer(text[0] + side)["input_ids"]) + 1 for side in text[1:]]
        if all(side.strip() for side in text) and max(lengths) <= 512:
            kept.append(text)
    out = tmp_path / "out.parquet"
    told = reference_file(model, write(tmp_path / "hh.jsonl", records), out, store=store)
    assert told["rows"] == len(kept)
    assert told["rows"] + sum(told["dropped"].values()) + sum(told["quarantined"].values()) == len(records)
    assert_scored(out, model, kept, oracle)
