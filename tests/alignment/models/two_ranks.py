"""`python -m tests.alignment.models.two_ranks FOLDER REQUEST`: what one rank of several makes of a sharded model.

The first rank prints JSON: log-probs and answers of all, what each rank read of the weights and what it keeps.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance

from alignment.data.tokens import TokenSequence
from alignment.generation.generator import GREEDY, Generator, Sampling
from alignment.logprobs.effort import Ranks
from alignment.logprobs.scorer import logps
from alignment.models import loading
from alignment.models.checkpoint import load_tokenizer
from alignment.models.sharding import local
from eval.answers.answer import ContinuationScorer


def main(folder: Path, asked: dict[str, Any]) -> dict[str, Any]:
    ranks = Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size())
    readers: list[loading.Reader] = []
    made = loading.reader
    loading.reader = lambda *given: readers.append(made(*given)) or readers[-1]  # type: ignore[func-returns-value]
    loading.load_sharded(folder, asked["precision"])  # imports read files too
    before = read_by_this_process()
    model = loading.load_sharded(folder, asked["precision"])
    read = read_by_this_process() - before
    sequences = [TokenSequence(tuple(prompt), tuple(completion)) for prompt, completion in asked["sequences"]]
    generator = Generator(model, load_tokenizer(folder), asked["batch_tokens"])
    samplings = [Sampling(1.0, 1.0, f"{place}") if place % 2 else GREEDY for place in range(len(asked["prompts"]))]
    answers = generator.answer(asked["prompts"], asked["new_tokens"], (), samplings)
    more = generator.continued([generator.encoder.encode(each) for each in asked["prompts"]], 3, samplings)
    scorer = ContinuationScorer(model, generator.encoder, asked["batch_tokens"])
    wanted = [Instance("loglikelihood", {}, ("the ", each), place) for place, each in enumerate(asked["prompts"])]
    return {
        "likelihoods": ranks.gather(scorer.score(wanted)),
        "logps": ranks.gather(logps(model, sequences, asked["batch_tokens"])),
        "answers": ranks.gather([answer.ids for answer in answers]),
        "continued": ranks.gather(more),
        "counted": ranks.gather(readers[0].bytes_read),
        "read": ranks.gather(read),
        "kept": ranks.gather(sum(local(weight).nbytes for weight in model.parameters())),
    }


def read_by_this_process() -> int:
    """Bytes that it asked files for, whether they were in the cache of the system or not."""
    return int(Path("/proc/self/io").read_text(encoding="utf-8").split()[1])


if __name__ == "__main__":
    torch.distributed.init_process_group("gloo")
    found = main(Path(sys.argv[1]), json.loads(sys.argv[2]))
    if torch.distributed.get_rank() == 0:
        print(json.dumps(found))
    torch.distributed.destroy_process_group()
