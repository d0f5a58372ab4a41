"""What a change of the data costs: tokens that go through the model, and what a pass over known rows takes.

    python -m benchmarks.reference_changes

A source of 60,000 pairs is scored once; then 1 % of new rows arrive. Our stage and TRL's precompute are both asked
for the whole new source, and what each puts through the model is counted in the model's forward, padding
included. Then known rows come as another shard: no model is loaded and nothing tokenised. The model is a small random
Llama and the pairs are short: it is counts that are compared, and the time of a pass that needs no model.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import torch

from alignment.data.files import pin_file
from alignment.data.rows import ROWS_FILE, iter_rows
from alignment.data.tokens import Dropped, Tokenization
from alignment.logprobs import reference
from alignment.models.checkpoint import load_model, load_tokenizer
from alignment.models.pin import pin_model
from alignment.quickstart.model import micro_tokenizer
from alignment.recipe import ModelSource, TokenPolicy
from alignment.stages import execute
from alignment.stages.base_model import STAGE as BASE_MODEL
from alignment.stages.base_model import BaseModelRequest
from alignment.stages.preference_shard import STAGE as SHARD
from alignment.stages.preference_shard import ShardRequest
from alignment.stages.reference_logprobs import STAGE as SCORE
from alignment.stages.reference_logprobs import ReferenceRequest
from alignment.store import Artifact, Store
from benchmarks.trl_pass import Pairs, trl_pass

MIB = 1 << 20
LENGTH = 128


@contextmanager
def forwarded() -> Iterator[list[int]]:
    """Positions of every forward pass of any Llama meanwhile."""
    from transformers import LlamaModel

    seen: list[int] = []
    own = LlamaModel.forward

    def counted(self: Any, *given: Any, **named: Any) -> Any:
        seen.append((named["input_ids"] if "input_ids" in named else given[0]).numel())
        return own(self, *given, **named)

    LlamaModel.forward = counted  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        LlamaModel.forward = own  # type: ignore[method-assign]


def model_folder(out: Path) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = micro_tokenizer(LENGTH)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


def record(number: int) -> dict[str, str]:
    draw = random.Random(number)

    def words(fewest: int, most: int) -> str:
        count = draw.randint(fewest, most)
        return " ".join(draw.choice(("red", "fox", "barn", "sings", "at night")) for _ in range(count))

    return {
        "prompt": f"{number}: {words(1, 6)}",
        "chosen": f" yes, {words(1, 8)}",
        "rejected": f" no, {words(1, 8)}",
    }


def shard_of(store: Store, folder: Path, name: str, numbers: list[int]) -> Artifact:
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(record(number)) + "\n" for number in numbers), encoding="utf-8")
    return execute(SHARD, ShardRequest(file=pin_file(str(path))), store).artifact


def tokenised(store: Store, shard: Artifact, folder: Path, policy: TokenPolicy) -> Pairs:
    tokenization = Tokenization(load_tokenizer(folder), policy, LENGTH)
    pairs = [tokenization.pair(row) for row in iter_rows(store.fetch(shard) / ROWS_FILE)]
    return [pair for pair in pairs if not isinstance(pair, Dropped)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=60_000)
    chosen = parser.parse_args()
    rows, policy = chosen.rows, TokenPolicy(max_length=LENGTH)
    process = psutil.Process()
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        store, model = Store(str(place / "store")), model_folder(place / "model")
        checkpoint = execute(
            BASE_MODEL, BaseModelRequest(pin=pin_model(ModelSource(path=str(model))), seed=0), store
        ).artifact

        def scored(shard: Artifact) -> tuple[dict[str, Any], int, float, float]:
            """Summary, positions forwarded, seconds, and MiB of resident memory gained at the end."""
            asked = ReferenceRequest(
                checkpoint=checkpoint, shard=shard, tokens=policy, precision="float32", batch_tokens=16_384
            )
            before, began = process.memory_info().rss, time.perf_counter()
            with forwarded() as seen:
                summary = execute(SCORE, asked, store).summary
            return summary, sum(seen), time.perf_counter() - began, (process.memory_info().rss - before) / MIB

        print(
            f"{rows} rows; torch {torch.__version__}, Python {platform.python_version()}, "
            f"{torch.get_num_threads()} threads"
        )
        print("\n| pass | rows | sequences scored | positions forwarded | seconds | MiB gained |")
        print("|---|---|---|---|---|---|")

        def show(name: str, told: tuple[dict[str, Any], int, float, float]) -> int:
            summary, positions, seconds, gained = told
            print(
                f"| {name} | {summary['rows']} | {summary['scored']} | {positions} | {seconds:.2f} | {gained:.0f} |",
                flush=True,
            )
            return positions

        numbers = list(range(rows))
        show("first", scored(shard_of(store, place, "first", numbers)))
        grown = shard_of(store, place, "grown", [*numbers, *range(rows, rows + rows // 100)])
        ours = show("1 % new rows", scored(grown))
        reference.release_model()
        known = shard_of(store, place, "recut", list(range(rows // 100, rows + rows // 100)))
        with ExitStack() as without:
            for name in ("load_model", "load_tokenizer"):
                without.enter_context(mock.patch.object(reference, name, _not_needed))
            show("all known, another shard", scored(known))
        name, padded = trl_pass(load_model(model, "float32"))
        pairs = tokenised(store, grown, model, policy)
        with forwarded() as seen:
            began = time.perf_counter()
            padded(pairs, 8)
        took = time.perf_counter() - began
        print(f"| {name}, 1 % new rows | {len(pairs)} | {2 * len(pairs)} | {sum(seen)} | {took:.2f} | |")
        print(f"\n1 % new rows: {sum(seen) / ours:.0f} times fewer positions forwarded than {name}")


def _not_needed(*_given: Any) -> Any:
    raise AssertionError("a pass over known rows loads no model and no tokenizer")


if __name__ == "__main__":
    main()
