"""Tiny models of several families, committed as artifacts, and an oracle that knows nothing of ours."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from alignment.data.rows import paired_row, write_rows
from alignment.logprobs import reference
from alignment.models.pin import pin_model
from alignment.models.runner import Runner
from alignment.recipe import ModelSource
from alignment.stages import execute
from alignment.stages.base_model import STAGE as BASE_MODEL
from alignment.stages.base_model import BaseModelRequest
from alignment.store import Artifact, Store
from tests.tiny import byte_tokenizer, write_model


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[..., Path]:
    """Writes a random model of a family into a folder of its own."""

    def make(family: str = "llama", *, bos: bool = True, seed: int = 0) -> Path:
        tokenizer = byte_tokenizer(bos="put" if bos else None)
        return write_model(tmp_path / f"{family}-{bos}-{seed}", tokenizer, family, seed=seed, initializer_range=0.2)

    return make


@pytest.fixture
def oracle() -> Callable[[Path, str, str], tuple[float, int]]:
    """(log-probability, counted tokens) of a plain-text completion: one row, full logits, all in float64."""
    models: dict[Path, Any] = {}

    def logp(folder: Path, prompt: str, completion: str) -> tuple[float, int]:
        from transformers import AutoTokenizer

        if folder not in models:
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager")
            models[folder] = model, AutoTokenizer.from_pretrained(folder)
        model, tokenizer = models[folder]
        before = tokenizer(prompt)["input_ids"]
        ids = [*tokenizer(prompt + completion)["input_ids"], tokenizer.eos_token_id]
        start = 0
        while start < len(before) and before[start] == ids[start]:
            start += 1
        start = max(start, 1)
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0]
        each = torch.log_softmax(logits, -1)[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
        return float(each[start - 1 :].sum()), len(ids) - start

    return logp


@dataclass
class Forwarded:
    """What went through models in passes that share prompts: the length of every sequence."""

    lengths: list[int] = field(default_factory=list)
    probing: bool = False

    def watch(self, model: Any) -> Any:
        def before(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if "shared_prompt" in kwargs and not self.probing:  # a probe has none
                self.lengths += map(len, kwargs["shared_prompt"].rows)

        model.get_decoder().register_forward_pre_hook(before, with_kwargs=True)
        return model


@pytest.fixture
def forwarded(monkeypatch: pytest.MonkeyPatch) -> Iterator[Forwarded]:
    """Counts what the scorer's models forward."""
    seen = Forwarded()
    load = reference.load_model
    reference.release_model()
    monkeypatch.setattr(reference, "load_model", lambda *what, **how: seen.watch(load(*what, **how)))
    prove = Runner._prove

    def probed(*what: Any) -> None:
        seen.probing = True
        try:
            prove(*what)
        finally:
            seen.probing = False

    monkeypatch.setattr(Runner, "_prove", probed)
    yield seen
    reference.release_model()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


@pytest.fixture
def commit_model() -> Callable[[Store, Path], Artifact]:
    def commit(store: Store, folder: Path) -> Artifact:
        request = BaseModelRequest(pin=pin_model(ModelSource(path=str(folder))), seed=0)
        return execute(BASE_MODEL, request, store).artifact

    return commit


Texts = Sequence[tuple[str, str, str]]


@pytest.fixture
def commit_shard(tmp_path: Path) -> Callable[[Store, Texts], Artifact]:
    """Commits (prompt, chosen, rejected) texts as a shard."""

    def commit(store: Store, texts: Texts) -> Artifact:
        rows = [paired_row(*text, "pairs.jsonl", number) for number, text in enumerate(texts, start=1)]
        key = f"{abs(hash(tuple(texts))):040x}"
        attempt = store.begin("preference_shard", key)
        write_rows(attempt.path / "rows.parquet", rows)
        return store.commit(
            attempt,
            digest=key,
            stage="preference_shard",
            code_version=1,
            inputs={},
            summary={},
            environment={},
            started_at="",
            seconds=0.0,
        ).artifact

    return commit


@pytest.fixture
def texts() -> list[tuple[str, str, str]]:
    """Twenty-four pairs of words of many lengths, no two sequences alike."""
    draw = random.Random(0)

    def words(fewest: int, most: int) -> str:
        return " ".join(draw.choice(("sun", "moon", "a", "tree", "É")) for _ in range(draw.randint(fewest, most)))

    return [(f"{number}: {words(1, 8)}", f" yes {words(1, 6)}", f" no {words(1, 6)}") for number in range(24)]
