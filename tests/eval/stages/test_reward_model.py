"""A reward model: trained on a manifest's pairs, measured on its held-out ones, and a scorer of sampled answers."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from alignment.data.files import pin_file
from alignment.errors import BadInput
from alignment.models.checkpoint import load_tokenizer
from alignment.models.pin import pin_model
from alignment.models.reward import load_reward_model, rewards
from alignment.recipe import Lora, ModelSource, TokenPolicy
from alignment.recipe.generate import RewardTraining
from alignment.stages import execute
from alignment.stages.preference_manifest import STAGE as MANIFEST
from alignment.stages.preference_manifest import ManifestRequest
from alignment.stages.preference_shard import STAGE as SHARD
from alignment.stages.preference_shard import ShardRequest
from alignment.store import Artifact, Store
from eval.ranking.scorers import RewardScorer, Scored
from eval.stages.reward_model import STAGE, RewardRequest, RewardSummary
from tests import tiny
from tests.alignment.training.two_processes import TwoProcesses

ANIMALS, PLACES = ("fox", "owl", "frog", "cow", "hen", "goat"), ("barn", "mill", "garden", "forest", "valley", "hut")
QUICK = RewardTraining(learning_rate=3e-3, epochs=2, batch_size=16, micro_batch_size=16, precision="float32")


def pairs(count: int) -> list[dict[str, Any]]:
    """A reply in quotation marks is preferred to the same without."""
    draw = random.Random(1)
    made = []
    for number in range(count):
        said = f"In the {draw.choice(PLACES)}, the {draw.choice(ANIMALS)} sleeps."
        prompt = [{"role": "user", "content": f"Line {number}: {draw.choice(ANIMALS)}"}]
        sides = {"chosen": f'"{said}"', "rejected": said}
        made.append({"prompt": prompt} | {name: [{"role": "assistant", "content": one}] for name, one in sides.items()})
    return made


@pytest.fixture
def pinned(store: Store, tmp_path: Path) -> Callable[..., Artifact]:
    """The manifest of so many pairs."""

    def build(count: int, held_out_fraction: float = 0.0) -> Artifact:
        path = tmp_path / "pairs.jsonl"
        path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs(count)), encoding="utf-8")
        shard = execute(SHARD, ShardRequest(file=pin_file(str(path))), store).artifact
        request = ManifestRequest(shards={"pairs": shard}, held_out_fraction=held_out_fraction)
        return execute(MANIFEST, request, store).artifact

    return build


@pytest.fixture
def request_of(
    pinned: Callable[..., Artifact], micro_folder: Path, commit_checkpoint: Callable[..., Artifact]
) -> Callable[..., RewardRequest]:
    manifest = pinned(200, 0.3)
    checkpoint = commit_checkpoint("micro", micro_folder)

    def build(**more: Any) -> RewardRequest:
        given: dict[str, Any] = {"manifest": manifest, "checkpoint": checkpoint, "settings": QUICK, "seed": 0}
        given |= {"tokens": TokenPolicy(max_length=128), "precision": "float32", "batch_tokens": 4096}
        return RewardRequest(**given | more)

    return build


@pytest.mark.parametrize("lora", [None, Lora(rank=8, alpha=16)], ids=["full", "lora"])
def test_its_held_out_accuracy_is_above_chance_by_its_interval_and_it_scores_answers(
    store: Store, request_of: Callable[..., RewardRequest], lora: Lora | None
) -> None:
    commit = execute(STAGE, request_of(settings=QUICK.model_copy(update={"lora": lora})), store)
    told = RewardSummary.of(commit)
    assert told.accuracy_low is not None and told.accuracy_low > 0.5 and told.rows_held_out > 30
    assert told.rows_trained + told.rows_held_out == 200 and told.margin is not None and told.margin > 0
    scorer = RewardScorer(store.fetch(commit.artifact), TokenPolicy(max_length=128), "float32", 4096)
    prompt = ({"role": "user", "content": "Line 9: fox"},)
    texts = ['"In the mill, the owl sleeps."', "In the mill, the owl sleeps.", "long " * 200]
    good, bad, unread = scorer([Scored(str(k), "p", prompt, {}, text) for k, text in enumerate(texts)])
    assert isinstance(good, float) and isinstance(bad, float) and good > bad
    assert isinstance(unread, str) and unread.startswith("the reward model cannot read it")


@pytest.fixture
def two_processes() -> Iterator[TwoProcesses]:
    both = TwoProcesses()
    yield both
    both.end()


def apart(found: Path, expected: Path, start: Path) -> float:
    """‖found − expected‖ / ‖expected − start‖ over the weights that the start has too."""
    ours, theirs, before = (load_file(folder / "model.safetensors") for folder in (found, expected, start))
    names = ours.keys() & before.keys()
    assert names
    between = sum(float((ours[name] - theirs[name]).double().square().sum()) for name in names)
    moved = sum(float((theirs[name] - before[name]).double().square().sum()) for name in names)
    return math.sqrt(between / moved)


@pytest.mark.parametrize("lora", [None, Lora(rank=4, alpha=8)], ids=["full", "lora"])
def test_of_an_uneven_last_step_every_pair_weighs_the_same_on_two_ranks_and_on_one(
    lora: Lora | None,
    tmp_path: Path,
    micro_folder: Path,
    store: Store,
    request_of: Callable[..., RewardRequest],
    pinned: Callable[[int], Artifact],
    two_processes: TwoProcesses,
) -> None:
    """19 pairs in steps of 8, 8 and 3. Two ranks with two pairs at a time would take one pair of the last step twice;
    one with two at a time would give its single pair the weight of two."""
    settings = QUICK.model_copy(update={"batch_size": 8, "micro_batch_size": 2, "epochs": 1.0, "lora": lora})
    request = request_of(manifest=pinned(19), settings=settings)
    at_once = request.model_copy(update={"settings": settings.model_copy(update={"micro_batch_size": 8})})
    twins = {}
    for name in ("two", "at once"):
        shutil.copytree(store.root, tmp_path / name)
        twins[name] = Store(str(tmp_path / name))
    single, whole = execute(STAGE, request, store), execute(STAGE, at_once, twins["at once"])
    of_two = request.model_copy(update={"world_size": 2})
    assert STAGE.key(of_two) == STAGE.key(request), "the number of ranks changes no result"
    together = two_processes.execute(STAGE, of_two, twins["two"])
    summaries = [RewardSummary.of(commit) for commit in (single, whole, together)]
    assert [(each.steps, each.rows_trained) for each in summaries] == [(3, 19)] * 3
    losses = [[record["loss"] for record in each.history] for each in summaries]
    assert losses[1] == pytest.approx(losses[0], abs=1e-4) and losses[2] == pytest.approx(losses[0], abs=1e-4)
    first = store.fetch(single.artifact)
    for place, commit in ((twins["at once"], whole), (twins["two"], together)):
        assert apart(place.fetch(commit.artifact), first, micro_folder) <= 1e-3


def test_a_reward_does_not_depend_on_its_batch(micro_folder: Path) -> None:
    torch.manual_seed(0)
    model = load_reward_model(micro_folder, "float32", fresh=True)
    sequences = [[5, 6, 7], [8, 9, 10, 11, 12, 13], [7]]
    together = rewards(model, sequences, 4096)
    alone = [rewards(model, [sequence], 1)[0] for sequence in sequences]
    assert all(math.isclose(one, other, abs_tol=1e-5) for one, other in zip(together, alone, strict=True))


def test_an_adopted_one_is_measured_and_a_language_model_is_refused(
    store: Store, tmp_path: Path, micro_folder: Path, request_of: Callable[..., RewardRequest]
) -> None:
    torch.manual_seed(0)
    folder = tmp_path / "reward"
    load_reward_model(micro_folder, "float32", fresh=True).save_pretrained(folder)
    for path in micro_folder.glob("*token*"):
        (folder / path.name).write_bytes(path.read_bytes())
    for path in micro_folder.glob("*.jinja"):
        (folder / path.name).write_bytes(path.read_bytes())
    adopted = pin_model(ModelSource(path=str(folder)))
    told = RewardSummary.of(execute(STAGE, request_of(adopt=adopted, checkpoint=None), store))
    assert told.accuracy is not None and told.rows_trained == 0 and told.source is not None
    language = pin_model(ModelSource(path=str(micro_folder)))
    with pytest.raises(BadInput, match="is no reward model: it has 2 outputs, and one is expected"):
        execute(STAGE, request_of(adopt=language, checkpoint=None), store)
    for path in (*folder.glob("*.jinja"), folder / "tokenizer_config.json"):
        text = json.loads(path.read_text(encoding="utf-8")) if path.suffix == ".json" else {}
        path.write_text(json.dumps(text | {"chat_template": None})) if text else path.unlink()
    scorer = RewardScorer(folder, TokenPolicy(max_length=128), "float32", 4096)
    with pytest.raises(BadInput, match="the reward model cannot read the prompts: rows are conversations and"):
        scorer([Scored("1", "p", ({"role": "user", "content": "q"},), {}, "a")])
    with pytest.raises(ValueError, match="give checkpoint and manifest, or adopt"):
        request_of(manifest=None)


TEMPLATE = "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{% endfor %}"


def reward_folder(folder: Path, tokenizer: Any, **changed: Any) -> Path:
    """A fresh reward model with a tokenizer of its own."""
    tiny.write_model(folder, tokenizer, **changed)
    torch.manual_seed(1)
    load_reward_model(folder, "float32", fresh=True).save_pretrained(folder)
    return folder


def test_a_reward_model_reads_answers_by_its_own_tokenizer_whatever_the_policy_s_is(
    tmp_path: Path, micro_folder: Path
) -> None:
    tokenizer = tiny.letter_tokenizer(template=TEMPLATE)
    folder = reward_folder(tmp_path / "letters", tokenizer)
    assert len(tokenizer) != len(load_tokenizer(micro_folder)), "the policy's"
    prompt = ({"role": "user", "content": "say yes"},)
    texts = ["yes.", "no.", "y" * 200, "\u00e9\u00e8"]
    scorer = RewardScorer(folder, TokenPolicy(max_length=64), "float32", 4096)
    yes, no, long, unknown = scorer([Scored(str(k), "p", prompt, {}, text) for k, text in enumerate(texts)])
    ids = [[*tokenizer.encode(f"<user>say yes<assistant>{text}"), tokenizer.eos_token_id] for text in texts[:2]]
    alone = rewards(load_reward_model(folder, "float32"), ids, 4096)
    assert [yes, no] == pytest.approx(alone, abs=1e-6) and yes != no
    assert long == "the reward model cannot read it: too long"
    assert isinstance(unknown, float), "as unknown letters"


def test_a_reward_model_whose_tokenizer_is_another_model_s_is_refused_in_one_line(tmp_path: Path) -> None:
    small = reward_folder(tmp_path / "small", tiny.letter_tokenizer(template=TEMPLATE))
    tiny.byte_tokenizer(pad=True, template=TEMPLATE).save_pretrained(small)
    scorer = RewardScorer(small, TokenPolicy(max_length=64), "float32", 4096)
    with pytest.raises(BadInput) as error:
        scorer([Scored("1", "p", ({"role": "user", "content": "zebra"},), {}, "yes")])
    told = str(error.value)
    assert told.startswith(
        "field 'reward_model.adopt': the reward model cannot read the prompts: the tokenizer gives id"
    )
    assert "embeddings for" in told and "\n" not in told
