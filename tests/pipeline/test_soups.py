"""An average as the candidate that passes the gate and is registered, and the same average before a stricter gate."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from alignment.models.checkpoint import load_model
from alignment.recipe import Recipe, load_recipe
from alignment.stages.stage import PolicySummary
from alignment_dags.nights.state import state_of
from alignment_dags.registry.lineage import lineage_of
from alignment_dags.run.workspace import Workspace
from assets.building.upstream import Upstream
from assets.card import card_of
from assets.registration import RegistrationSummary
from eval.gate.sweep import SweepSummary
from eval.stages.evaluation_report import ReportSummary
from resources.mlflow import Tracking
from resources.pools import load_pools
from tests import tiny
from tests.pipeline.conftest import CHAT_TEMPLATE, WIDE

NOT_WORSE = {"ifeval/prompt_level_strict_acc": {"no_regression": 0.05}}
AS_SHORT = {"answers/length": {"max_ratio": 1.1}}


@pytest.fixture(scope="session")
def doubtful_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that was taught to answer everything with no or, less often, with yes."""
    folder, tokenizer = tmp_path_factory.mktemp("doubtful"), tiny.byte_tokenizer(pad=True, template=CHAT_TEMPLATE)
    tiny.write_model(folder, tokenizer, "llama", **WIDE)
    model, draw = load_model(folder, "float32"), random.Random(0)
    model.train().requires_grad_(True)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        chats = [
            [
                {"role": "user", "content": f"Ask {draw.randrange(1000)}"},
                {"role": "assistant", "content": "yes" if draw.random() < 0.4 else "no"},
            ]
            for _ in range(16)
        ]
        texts = [tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats]
        batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        optimiser.zero_grad()
        model(**batch, labels=labels).loss.backward()
        optimiser.step()
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def recipe(small_recipe: dict[str, Any], tmp_path: Path, doubtful_model: Path) -> Callable[..., Recipe]:
    """Pairs that prefer yes, items that ask for it, and a learning rate that is ten times too high: trained so, the
    policy alone writes neither word any more, and a quarter of the SFT checkpoint brings it back."""

    def lines(name: str, rows: list[dict[str, Any]]) -> str:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(tmp_path / name)

    def write(**metrics: Any) -> Recipe:
        chat = [[{"role": "user", "content": f"Ask {n}"}] for n in range(48)]
        sides = {"chosen": "yes", "rejected": "no"}
        pairs = [
            {"prompt": one} | {side: [{"role": "assistant", "content": text}] for side, text in sides.items()}
            for one in chat
        ]
        asked = [{"keywords": ["yes"]}, {"num_words": 2, "relation": "less than"}]
        kinds = ["keywords:existence", "length_constraints:number_words"]
        items = [
            {"key": n, "prompt": f"Ask {n}", "instruction_id_list": kinds, "kwargs": asked} for n in range(500, 560)
        ]
        model = {"path": str(doubtful_model)}
        changes: dict[str, Any] = {
            "base_model": model,
            "sft": {"adopt": model, "precision": "float32"},
            "preferences": {"files": [lines("pairs.jsonl", pairs)]},
            "optimise": {"precision": "float32", "learning_rate": 1e-2, "epochs": 2, "batch_size": 8},
            "evals": {"precision": "float32", "ifeval": {"data": lines("items.jsonl", items), "max_new_tokens": 12}},
            "soups": {"sft": [0.25]},
            "gate": {"metrics": metrics, "any_improves": False},
        }
        path = tmp_path / "recipe.yaml"
        given = {name: value for name, value in small_recipe.items() if name != "dpo"}
        path.write_text(yaml.safe_dump(given | changes), encoding="utf-8")
        return load_recipe(path)

    return write


def test_an_average_that_is_better_than_the_policy_alone_passes_the_gate_and_is_registered_with_its_own_lineage(
    recipe: Callable[..., Recipe], bring_up_to_date: Callable[..., Upstream]
) -> None:
    of = recipe(**NOT_WORSE)
    upstream = bring_up_to_date(of)
    store = upstream.store
    choice = SweepSummary.of(store.commit_of(upstream("sweep_report")))
    alone, soup = choice.points["soup_alone"], choice.points["soup_sft_0_25"]
    assert choice.picked == "soup_sft_0_25" and choice.confirmed
    assert soup.picking.difference > alone.picking.difference + 0.5, "on the items that pick"
    assert soup.confirming.low is not None and soup.confirming.low > 0.5, "and on those that had no say"
    report = ReportSummary.of(store.commit_of(upstream("evaluation_report")))
    assert report.verdict == "pass" and report.comparisons["ifeval"]["prompt_level_strict_acc"].n == soup.confirming.n

    average, trained = (store.commit_of(upstream(name)) for name in ("policy_checkpoint", "trained/policy_checkpoint"))
    sft = upstream("sft_checkpoint")
    assert PolicySummary.of(average).merged == {"policy": 0.75, "sft": 0.25} and average.digest != trained.digest
    registration = store.commit_of(upstream("registered_model"))
    assert RegistrationSummary.of(registration).registered and registration.inputs["policy"] == average.artifact
    version = Tracking().client().get_model_version_by_alias("small", "champion")
    assert version.tags["align.policy_digest"] == average.digest

    lineage = lineage_of("small")
    assert lineage == lineage_of("small", "mlflow") and lineage["policy"]["digest"] == average.digest
    policy = lineage["tree"]["inputs"]["policy"]
    assert policy["stage"] == "merged_checkpoint"
    parts = {name: part["digest"] for name, part in policy["inputs"].items() if name.startswith("parts.")}
    assert parts == {"parts.policy": trained.digest, "parts.sft": sft.digest}
    assert policy["inputs"]["checkpoint"]["inputs"]["manifest"]["digest"] == upstream("preference_manifest").digest
    assert lineage["sft"]["digest"] == sft.digest and [shard["rows"] for shard in lineage["shards"]] == [48]
    assert card_of(store, registration).licences
    weights = [load_model(store.fetch(each), "float32").state_dict() for each in (trained.artifact, sft)]
    for name, tensor in load_model(store.fetch(average.artifact), "float32").state_dict().items():
        torch.testing.assert_close(tensor, 0.75 * weights[0][name] + 0.25 * weights[1][name])

    launched: list[Any] = bring_up_to_date.launched  # type: ignore[attr-defined]
    before = len(launched)
    bring_up_to_date(of)
    assert len(launched) == before and state_of(Workspace(of, load_pools())).train == ()


def test_an_average_that_was_picked_and_confirmed_is_refused_where_the_gate_asks_more_than_it_has(
    recipe: Callable[..., Recipe], bring_up_to_date: Callable[..., Upstream]
) -> None:
    """Yes is longer than no, and the gate allows a tenth."""
    of = recipe(**NOT_WORSE, **AS_SHORT)
    with pytest.raises(Exception, match="the gate says fail"):
        bring_up_to_date(of)
    upstream = Workspace(of, load_pools()).upstream()
    store = upstream.store
    choice = SweepSummary.of(store.commit_of(upstream("sweep_report")))
    assert (choice.picked, choice.confirmed) == ("soup_sft_0_25", True)
    report = ReportSummary.of(store.commit_of(upstream("evaluation_report")))
    assert report.verdict == "fail" and all(reason.startswith("answers/length") for reason in report.reasons)
    assert upstream.get("registered_model") is None and Tracking().client().search_registered_models() == []
