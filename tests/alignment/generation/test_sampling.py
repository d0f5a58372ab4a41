from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from alignment.generation.generator import GREEDY, Generator, RowSampler, Sampling, draw
from alignment.models.checkpoint import load_model, load_tokenizer

PROMPTS = [[{"role": "user", "content": text}] for text in ("Hello", "Write a line.", "a", "Do the same for the bear.")]


def drawn(logits: list[float], sampling: Sampling, count: int) -> Counter[int]:
    sampler = RowSampler([sampling])
    scores = torch.tensor([logits])
    return Counter(int(sampler(torch.zeros(1, 1), scores).argmax()) for _ in range(count))


def test_tokens_come_as_often_as_their_probability_at_the_temperature() -> None:
    logits = [2.0, 1.0, 0.0, -3.0]
    for temperature in (0.5, 1.0, 2.0):
        expected = torch.softmax(torch.tensor(logits) / temperature, dim=0)
        found = drawn(logits, Sampling(temperature, seed="s"), 4000)
        for token, chance in enumerate(expected.tolist()):
            error = (chance * (1 - chance) / 4000) ** 0.5
            assert abs(found[token] / 4000 - chance) < 4 * error + 1e-9


def test_top_p_draws_only_the_fewest_likely_tokens_that_reach_it() -> None:
    chances = [0.05, 0.5, 0.15, 0.3]
    logits = torch.tensor(chances).log().tolist()
    assert set(drawn(logits, Sampling(1.0, 0.79, "s"), 400)) == {1, 3}
    assert set(drawn(logits, Sampling(1.0, 0.81, "s"), 400)) == {1, 2, 3}
    assert set(drawn(logits, Sampling(1.0, 1e-6, "s"), 50)) == {1}


def test_the_ends_of_the_unit_interval_fall_on_tokens() -> None:
    logits = torch.tensor([[0.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    numbers = torch.tensor([[0.0], [1.0 - 1e-16]], dtype=torch.float64)
    assert draw(logits, torch.ones(2, 1, dtype=torch.float64), numbers).tolist() == [1, 0]


def test_greedy_rows_are_left_alone() -> None:
    scores = torch.tensor([[1.0, 2.0], [1.0, 2.0]])
    found = RowSampler([GREEDY, Sampling(1.0, seed="s")])(torch.zeros(2, 1), scores)
    assert torch.equal(found[0], scores[0])
    assert torch.isinf(found[1]).sum() == 1


@pytest.fixture(scope="module")
def generator(micro_folder: Path) -> Generator:
    return Generator(load_model(micro_folder, "float32", "cpu"), load_tokenizer(micro_folder), 4096)


def test_an_answer_does_not_depend_on_its_batch_and_repeats(generator: Generator) -> None:
    samplings = [Sampling(0.7 * index, seed=str(index)) for index in range(len(PROMPTS))]
    together = generator.answer(PROMPTS, 24, (), samplings)
    assert together == generator.answer(PROMPTS, 24, (), samplings)
    for prompt, sampling, answer in zip(PROMPTS, samplings, together, strict=True):
        assert generator.answer([prompt], 24, (), [sampling]) == [answer]
    backwards = generator.answer(PROMPTS[::-1], 24, (), samplings[::-1])
    assert backwards[::-1] == together
    assert together[0] == generator.answer(PROMPTS[:1], 24)[0]


def test_other_seeds_give_other_answers(generator: Generator) -> None:
    answers = {generator.answer(PROMPTS[:1], 24, (), [Sampling(1.0, seed=str(seed))])[0].text for seed in range(5)}
    assert len(answers) == 5
