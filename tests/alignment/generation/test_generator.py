from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from alignment.data.tokens import Tokenization, TokenSequence
from alignment.generation.generator import Generator, PromptEncoder, batches, cut_at
from alignment.models.checkpoint import load_model, load_tokenizer
from alignment.recipe import TokenPolicy
from tests.tiny import byte_tokenizer

QUESTIONS = ["Hello", "Write a line about the black deer in the hut.", "a", "Do the same for the bear."]


@pytest.fixture(scope="module")
def parts(micro_folder: Path) -> tuple[Any, Any]:
    return load_model(micro_folder, "float32", "cpu"), load_tokenizer(micro_folder)


@pytest.fixture
def generator(parts: tuple[Any, Any]) -> Generator:
    return Generator(*parts, batch_tokens=4096)


def chats(questions: list[str]) -> list[list[dict[str, str]]]:
    return [[{"role": "user", "content": question}] for question in questions]


def greedy(model: Any, ids: list[int], new: int, end: int) -> list[int]:
    """One prompt alone, no cache, no padding: the token with the highest logit, again and again."""
    import torch

    made: list[int] = []
    while len(made) < new:
        with torch.no_grad():
            token = int(model(torch.tensor([ids + made])).logits[0, -1].argmax())
        if token == end:
            break
        made.append(token)
    return made


def test_batched_answers_equal_greedy_decoding_alone(generator: Generator, parts: tuple[Any, Any]) -> None:
    model, tokenizer = parts
    answers = generator.answer(chats(QUESTIONS), max_new_tokens=24)
    for prompt, answer in zip(chats(QUESTIONS), answers, strict=True):
        made = greedy(model, generator.encoder.encode(prompt), 24, tokenizer.eos_token_id)
        assert answer.text == tokenizer.decode(made, skip_special_tokens=True)


def test_the_batch_size_changes_no_answer(parts: tuple[Any, Any]) -> None:
    one_by_one = Generator(*parts, batch_tokens=1).answer(chats(QUESTIONS), 24)
    assert Generator(*parts, batch_tokens=10_000).answer(chats(QUESTIONS), 24) == one_by_one


def test_prompts_have_the_ids_they_have_in_training(generator: Generator, parts: tuple[Any, Any]) -> None:
    tokenization = Tokenization(parts[1], TokenPolicy())
    for prompt in chats(QUESTIONS):
        trained = tokenization.completion("chat", prompt, [{"role": "assistant", "content": "z"}])
        assert isinstance(trained, TokenSequence)
        assert tuple(generator.encoder.encode(prompt)) == trained.prompt_ids
    trained = tokenization.completion("text", "Hello ", "zz")
    assert isinstance(trained, TokenSequence)
    assert tuple(generator.encoder.encode("Hello ")) == trained.prompt_ids


@pytest.mark.parametrize(
    ("policy", "begins"),
    [
        ({}, "[26 Jul 2024] system: s\n"),
        ({"today": "2025-01-02"}, "[02 Jan 2025] system: s\n"),
        ({"system": "first_user"}, "[26 Jul 2024] user: s\n\nq\n"),
        ({"system": "drop"}, "[26 Jul 2024] user: q\n"),
    ],
)
def test_prompts_are_written_as_the_token_policy_has_them_in_training(policy: dict[str, str], begins: str) -> None:
    tokenizer = byte_tokenizer(
        template="{{ strftime_now('[%d %b %Y]') }}{% for m in messages %} {{ m.role }}: {{ m.content }}\n{% endfor %}"
    )
    tokens = TokenPolicy.model_validate(policy)
    encoder = PromptEncoder(tokenizer, None, tokens)
    prompt = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    assert tokenizer.decode(encoder.encode(prompt)).startswith(begins)
    trained = Tokenization(tokenizer, tokens).completion("chat", prompt, [{"role": "assistant", "content": "z"}])
    assert isinstance(trained, TokenSequence)
    assert tuple(encoder.encode(prompt)) == trained.prompt_ids


def test_a_padding_id_without_an_embedding_changes_no_answer(parts: tuple[Any, Any]) -> None:
    model, tokenizer = parts
    plain = Generator(model, tokenizer, 4096).answer(chats(QUESTIONS), 24)
    beyond = copy.deepcopy(tokenizer)
    beyond.add_special_tokens({"pad_token": "<beyond>"})
    assert beyond.pad_token_id >= model.get_input_embeddings().weight.shape[0]
    assert Generator(model, beyond, 4096).answer(chats(QUESTIONS), 24) == plain


@pytest.mark.real_data
def test_a_plain_prompt_opens_with_one_bos_and_no_eos(real_data: Path) -> None:
    folder = real_data / "stories260k"
    generator = Generator(load_model(folder, "float32", "cpu"), load_tokenizer(folder), 2048)
    assert not generator.is_chat
    ids = generator.encoder.encode("Once upon a time")
    assert ids[0] == 1 and 1 not in ids[1:] and 2 not in ids
    (answer,) = generator.answer(["Once upon a time"], 40, until=[" girl"])
    (whole,) = generator.answer(["Once upon a time"], 40)
    assert " girl" in whole.text and answer.text == whole.text.partition(" girl")[0]
    assert answer.tokens < whole.tokens


def test_an_answer_ends_before_its_first_stop_string(generator: Generator) -> None:
    prompts = chats(QUESTIONS)
    whole = generator.answer(prompts, 24)
    stop = whole[1].text[5:8]
    stopped = generator.answer(prompts, 24, until=["§§", stop])
    assert [a.text for a in stopped] == [a.text.partition(stop)[0] for a in whole]
    assert stopped[1].tokens < whole[1].tokens


def test_a_prompt_without_room_fails_and_one_with_little_room_is_cut_short(generator: Generator) -> None:
    context = generator.encoder.context
    assert context == 256
    overhead = len(generator.encoder.encode(chats([""])[0]))
    tight, full = "a" * (context - overhead - 16), "a" * (context - overhead - 15)
    roomy, failed, short = generator.answer(chats(["a", full, tight]), 40)
    assert failed.failed == "prompt of 241 tokens + 16 new > 256"
    assert short.failed is None and short.tokens <= 16
    assert roomy.failed is None


def test_generation_settings_of_a_checkpoint_do_not_count(parts: tuple[Any, Any]) -> None:
    from transformers import GenerationConfig

    model, tokenizer = parts
    plain = Generator(model, tokenizer, 4096).answer(chats(QUESTIONS), 24)
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=3.0, repetition_penalty=5.0, eos_token_id=tokenizer.eos_token_id
    )
    assert Generator(model, tokenizer, 4096).answer(chats(QUESTIONS), 24) == plain


def test_batches_hold_every_row_once_within_the_budget() -> None:
    lengths = [5, 90, 17, 3, 60, 60, 8]
    made = list(batches(lengths, list(range(7)), max_new_tokens=10, batch_tokens=150))
    assert sorted(index for batch in made for index in batch) == list(range(7))
    for batch in made:
        assert len(batch) == 1 or len(batch) * (max(lengths[index] for index in batch) + 10) <= 150


@pytest.mark.parametrize(
    ("until", "kept"), [((), "one two"), (("two", "ne"), "o"), (("x",), "one two"), (("",), "one two")]
)
def test_text_is_cut_at_the_first_stop(until: tuple[str, ...], kept: str) -> None:
    assert cut_at("one two", until) == kept
