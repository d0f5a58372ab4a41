"""Peak memory of one scoring pass beyond the weights: 16,384 tokens under a vocabulary of 152,000.

    python -m benchmarks.scoring_memory [--dtype bfloat16]

The weights are random, of Qwen2.5-0.5B's shape with fewer layers: what a pass holds does not grow with their number.
On a GPU it is the allocator's peak, on a CPU resident memory sampled every 10 ms; a CPU's usual cap on tokens a pass
is lifted, so that the pass is as large as on a GPU.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch

from alignment.data.tokens import TokenSequence
from alignment.models import runner
from benchmarks.preference_mix import SIZES
from benchmarks.reference_logprobs import build, ours, peak_memory

TOKENS, PROMPT, COMPLETION = 16_384, 256, 384


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--layers", type=int, default=2)
    chosen = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape = SIZES["0.5b"]
    size = replace(shape, config=shape.config | {"num_hidden_layers": chosen.layers}, dtype=chosen.dtype)
    model = build(size, device, 1)[0]
    runner.CPU_TOKENS = TOKENS
    draw = torch.Generator().manual_seed(0)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 151_000, (count,), generator=draw).tolist())

    rows = []
    for _ in range(TOKENS // (PROMPT + 2 * COMPLETION)):
        prompt = ids(PROMPT)
        rows.append((TokenSequence(prompt, ids(COMPLETION)), TokenSequence(prompt, ids(COMPLETION))))
    ours(model, rows[:1], TOKENS)
    with peak_memory(device) as peak:
        ours(model, rows, TOKENS)
    print(
        f"{TOKENS} tokens a pass, vocabulary {model.config.vocab_size}, {chosen.dtype}, {device.type}: "
        f"{peak[0]:.2f} GiB beyond the weights"
    )


if __name__ == "__main__":
    main()
