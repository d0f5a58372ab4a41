"""A tiny model, its tokenizer, a store and preference data: what a training stage needs, made from a seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alignment.digest import json_digest
from alignment.recipe import Dpo, TokenPolicy
from alignment.stages.execute import environment
from alignment.store import Artifact, Store
from tests.alignment.training.two_processes import TwoProcesses
from tests.tiny import letter_tokenizer, write_model

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
SPREAD = {"max_position_embeddings": 96, "initializer_range": 0.3}


def write_tiny_model(folder: Path, *, kind: str = "llama", template: str | None = None, dtype: str = "float32") -> Path:
    tokenizer = letter_tokenizer(template=template)
    return write_model(folder, tokenizer, kind, seed=7, dtype=dtype, tie_word_embeddings=kind == "llama", **SPREAD)


def alone(model: Any, prompt: Any, completion: Any) -> float:
    """The plain definition: sum of log-softmax over completion tokens, one sequence, full logits, float64 sum."""
    import torch

    ids = torch.tensor([[*prompt, *completion]], device=next(model.parameters()).device)
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, :-1].float()
    picked = logits.log_softmax(-1).gather(1, ids[0, 1:, None])[len(prompt) - 1 :, 0]
    return float(picked.double().sum())


def _write(rows: list[Any], out: Path) -> None:
    from alignment.data.rows import write_rows

    write_rows(out / "rows.parquet", rows)


def words(rng: random.Random, longest: int) -> str:
    return "".join(rng.choice("abcdefghij ") for _ in range(rng.randint(2, longest)))


@dataclass
class Lab:
    """A store in which artifacts are put by hand and stages are run."""

    root: Path
    store: Store
    made: int = field(default=0)

    def publish(self, kind: str, digest: str, summary: dict[str, Any], fill: Callable[[Path], Any]) -> Artifact:
        self.made += 1
        attempt = self.store.begin(kind, f"{self.made:040d}")
        fill(attempt.path)
        return self.store.commit(
            attempt,
            digest=digest,
            stage=kind,
            code_version=1,
            inputs={},
            summary=summary,
            environment=environment(),
            started_at="",
            seconds=0.0,
        ).artifact

    def twin(self, folder: Path) -> Store:
        """A store with the same inputs in it, in which no training was committed or begun."""
        import shutil

        trained = shutil.ignore_patterns("policy_checkpoint", "work")
        shutil.copytree(self.store.root, folder, ignore=trained)
        for commit in Store(str(folder)).commits("sft_checkpoint"):
            if commit.started_at:  # made by the stage, not put there
                shutil.rmtree(folder / commit.kind / commit.key)
        return Store(str(folder))

    def checkpoint(self, **settings: Any) -> Artifact:
        from alignment.models.checkpoint import checkpoint_summary, digest_checkpoint

        folder = write_tiny_model(self.root / f"model-{self.made}", **settings)
        return self.adopt(folder, digest_checkpoint(folder), checkpoint_summary(folder))

    def adopted(self, source: dict[str, Any]) -> Artifact:
        """A checkpoint that came from `source`."""
        from alignment.models.checkpoint import checkpoint_summary, digest_checkpoint

        folder = write_tiny_model(self.root / f"model-{self.made}", kind="qwen2")
        return self.adopt(folder, digest_checkpoint(folder), checkpoint_summary(folder) | {"from": source})

    def register(self, model: str, policy: Artifact) -> None:
        """Makes a policy the only version of a registered model."""
        self.made += 1
        attempt = self.store.begin("registered_model", f"{self.made:040d}")
        self.store.commit(
            attempt,
            digest=model,
            stage="registered_model",
            code_version=1,
            inputs={"policy": policy},
            summary={"registered": True, "model": model, "version": "1"},
            environment=environment(),
            started_at="",
            seconds=0.0,
        )

    def adopt(self, folder: Path, digest: Any, summary: dict[str, Any]) -> Artifact:
        import shutil

        return self.publish(
            "sft_checkpoint", digest.digest, summary, lambda out: shutil.copytree(folder, out, dirs_exist_ok=True)
        )

    def rows(self, count: int, seed: int = 0, chat: bool = False) -> list[Any]:
        from alignment.data.rows import paired_row

        rng, made = random.Random(seed), []
        for number in range(count):
            prompt, chosen, rejected = words(rng, 20), words(rng, 20), words(rng, 20)
            if chat:
                said: tuple[Any, ...] = (({"role": "user", "content": prompt},),)
                said += tuple(({"role": "assistant", "content": text},) for text in (chosen, rejected))
                prompt, chosen, rejected = said
            made.append(paired_row(prompt, chosen, rejected, "pairs.jsonl", number + 1))
        return made

    def references(self, checkpoint: Artifact, rows: list[Any], tokens: TokenPolicy, precision: str) -> tuple[Any, str]:
        """Log-probs, and the fingerprint they go with: by the plain definition in float32, by our own pass in 16 bits,
        where another pass rounds otherwise."""
        from alignment.data.tokens import Dropped, Tokenization
        from alignment.logprobs.keys import fingerprint, sequence_key
        from alignment.logprobs.scorer import logps as packed_logps
        from alignment.models.checkpoint import load_model, load_tokenizer

        folder = self.store.fetch(checkpoint)
        summary = self.store.commit_of(checkpoint).summary
        print_ = fingerprint(summary["weights_digest"], summary["config_digest"], precision)
        runs_code = "runs_code" in summary
        model = load_model(folder, precision, runs_code=runs_code)
        tokenization = Tokenization(load_tokenizer(folder, runs_code), tokens)
        scored, dropped = [], []
        for row in rows:
            pair = tokenization.pair(row)
            if isinstance(pair, Dropped):
                dropped.append({"row_id": row.row_id, "reason": pair.reason})
                continue
            cells: dict[str, Any] = {"row_id": row.row_id}
            logps = [alone(model, sequence.prompt_ids, sequence.completion_ids) for sequence in pair]
            logps = logps if precision == "float32" else packed_logps(model, pair, 2048)
            for side, sequence, logp in zip(("chosen", "rejected"), pair, logps, strict=True):
                cells[f"{side}_logp"] = logp
                cells[f"{side}_tokens"] = len(sequence.completion_ids)
                cells[f"{side}_key"] = sequence_key(print_, sequence).hex()
            scored.append(cells)
        return (scored, dropped), print_

    def shard(self, rows: list[Any]) -> Artifact:
        """A shard of pairs."""
        from alignment.data.rows import write_rows

        return self.publish(
            "preference_shard",
            json_digest(sorted(row.row_id for row in rows)),
            {"rows": len(rows), "kind": "paired"},
            lambda out: write_rows(out / "rows.parquet", rows),
        )

    def manifest(
        self,
        checkpoint: Artifact,
        rows: list[Any],
        *,
        tokens: TokenPolicy | None = None,
        precision: str = "float32",
        held_out_fraction: float = 0.0,
        referenced: bool = True,
        change: Callable[[list[dict[str, Any]]], Any] = lambda scored: None,
    ) -> Artifact:
        """A one-shard manifest, made by the real stage; `change` may falsify the references first, where there are
        any."""
        from alignment.stages import execute
        from alignment.stages.preference_manifest import STAGE, ManifestRequest

        tokens = tokens or TokenPolicy(max_length=64)
        row_digest = json_digest(sorted(row.row_id for row in rows))
        shard = self.shard(rows)
        if not referenced:
            request = ManifestRequest(shards={"one": shard}, held_out_fraction=held_out_fraction)
            return execute(STAGE, request, self.store).artifact
        (scored, dropped), fingerprint = self.references(checkpoint, rows, tokens, precision)
        change(scored)

        def fill(out: Path) -> None:
            pq.write_table(pa.Table.from_pylist(scored), out / "logprobs.parquet")
            schema = pa.schema([("row_id", pa.string()), ("reason", pa.string())])
            pq.write_table(pa.Table.from_pylist(dropped, schema=schema), out / "dropped.parquet")

        reference = self.publish("reference_logprobs", row_digest, {"fingerprint": fingerprint}, fill)
        request = ManifestRequest(
            shards={"one": shard}, references={"one": reference}, held_out_fraction=held_out_fraction
        )
        return execute(STAGE, request, self.store).artifact

    def scored_manifest(
        self,
        checkpoint: Artifact,
        rows: list[Any],
        method: Any,
        *,
        held_out_fraction: float = 0.0,
        tokens: TokenPolicy | None = None,
        precision: str = "float32",
        parts: int = 1,
        quantise: Any = None,
    ) -> Artifact:
        """The same for any method: its references come from the real stage, as the method asks for them. The rows are
        dealt to so many shards."""
        from alignment.stages import execute
        from alignment.stages.preference_manifest import STAGE, ManifestRequest
        from alignment.stages.reference_logprobs import STAGE as REFERENCE
        from alignment.stages.reference_logprobs import ReferenceRequest

        shards, references = {}, {}
        for number, part in enumerate([rows] if parts == 1 else [rows[place::parts] for place in range(parts)]):
            name, digest = f"part-{number}", json_digest(sorted(row.row_id for row in part))
            summary = {"rows": len(part), "kind": "paired" if part[0].paired else "unpaired"}
            shards[name] = self.publish("preference_shard", digest, summary, partial(_write, part))
            request = ReferenceRequest(
                checkpoint=checkpoint,
                shard=shards[name],
                tokens=tokens or TokenPolicy(max_length=64),
                precision=precision,
                batch_tokens=400,
                quantise=quantise,
                first_tokens=method.first_tokens,
                held_out_fraction=held_out_fraction if method.coupled else None,
            )
            references[name] = execute(REFERENCE, request, self.store).artifact
        manifest = ManifestRequest(shards=shards, references=references, held_out_fraction=held_out_fraction)
        return execute(STAGE, manifest, self.store).artifact

    def dpo_request(self, checkpoint: Artifact, manifest: Artifact, **settings: Any) -> Any:
        from alignment.stages.policy import DpoRequest

        world_size = settings.pop("world_size", 1)
        tokens = settings.pop("tokens", None) or TokenPolicy(max_length=64)
        seed, sft_dataset = settings.pop("seed", 3), settings.pop("sft_dataset", None)
        given = {
            "learning_rate": 1e-3,
            "batch_size": 4,
            "micro_batch_size": 4,
            "precision": "float32",
            "save_steps": 1000,
            **settings,
        }
        return DpoRequest(
            manifest=manifest,
            checkpoint=checkpoint,
            settings=Dpo(**given),
            tokens=tokens,
            seed=seed,
            world_size=world_size,
            sft_dataset=sft_dataset,
        )

    def sft_dataset(self, count: int, held_out: int = 0, chat: bool = False, seed: int = 0) -> Artifact:
        from alignment.data.rows import sft_row, write_sft_rows

        made = [
            sft_row(row.prompt, row.chosen, "demos.jsonl", row.source_row)
            for row in self.rows(count + held_out, seed, chat)
        ]
        digest = json_digest([row.row_id for row in made])

        def fill(out: Path) -> None:
            write_sft_rows(out / "train.parquet", made[:count])
            write_sft_rows(out / "held_out.parquet", made[count:])

        return self.publish("sft_dataset", digest, {}, fill)

    def sft_request(self, base: Artifact, dataset: Artifact, **settings: Any) -> Any:
        from alignment.recipe import SftTraining
        from alignment.stages.sft_checkpoint import SftRequest

        given = {
            "learning_rate": 1e-2,
            "batch_size": 4,
            "micro_batch_size": 4,
            "precision": "float32",
            "max_length": 64,
            "save_steps": 1000,
            **settings,
        }
        world_size = given.pop("world_size", 1)
        return SftRequest(base=base, dataset=dataset, settings=SftTraining(**given), seed=3, world_size=world_size)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path, Store(str(tmp_path / "store")))


@pytest.fixture(scope="package")
def two_processes() -> Iterator[TwoProcesses]:
    both = TwoProcesses()
    yield both
    both.end()


@pytest.fixture
def template() -> str:
    return TEMPLATE


@pytest.fixture
def score_alone() -> Callable[[Any, Any, Any], float]:
    return alone


@contextmanager
def interrupted_at(step: int) -> Iterator[None]:
    """Meanwhile preference training is interrupted, as by Ctrl-C, once it has taken this many steps."""
    from alignment.training.preference_trainer import CachedReferenceTrainer

    training_step = CachedReferenceTrainer.training_step

    def ending(trainer: Any, *args: Any, **kwargs: Any) -> Any:
        if trainer.state.global_step == step:
            raise KeyboardInterrupt
        return training_step(trainer, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(CachedReferenceTrainer, "training_step", ending)
        yield
