from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from alignment.data.rows import PreferenceRow, paired_row
from alignment.data.tokens import (
    NO_ROOM,
    NOTHING_TO_COUNT,
    PROMPT_MERGED,
    PROMPT_TOO_LONG,
    TOO_LONG,
    Tokenization,
    TokenSequence,
)
from alignment.data.writing import TEMPLATE_REFUSED, Dropped
from alignment.errors import BadInput
from alignment.recipe import TokenPolicy

LETTERS = "abcdefghijklmnopqrstuvwxyz /<>|\n.,:"
CHATML = (
    "{% for m in messages %}<|{{ m.role }}>{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant>{% endif %}"
)
BOS, EOS = 0, 1
POLICY = TokenPolicy(max_length=1000)


def letters(template: str | None = None, *, bos: bool = True, adds_eos: bool = False) -> PreTrainedTokenizerFast:
    """One id a letter, but 'ab' has an id of its own; specials are parsed out of text."""
    vocabulary = {text: index for index, text in enumerate(["<s>", "</s>", "<unk>", *LETTERS, "ab"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("ab|."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    if bos or adds_eos:
        single = f"{'<s> ' if bos else ''}$A{' </s>' if adds_eos else ''}"
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=[("<s>", BOS), ("</s>", EOS)]
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>" if bos else None, eos_token="</s>", unk_token="<unk>"
    )
    fast.chat_template = template
    return fast


def ids(text: str) -> tuple[int, ...]:
    return tuple(3 + LETTERS.index(letter) for letter in text)


AB = 3 + len(LETTERS)


def user(text: str) -> tuple[dict[str, str], ...]:
    return ({"role": "user", "content": text},)


def assistant(text: str) -> tuple[dict[str, str], ...]:
    return ({"role": "assistant", "content": text},)


def test_plain_text_is_bos_prompt_completion_eos() -> None:
    tokens = Tokenization(letters(), POLICY)
    assert tokens.completion("text", "xy", "zz") == TokenSequence((BOS, *ids("xy")), (*ids("zz"), EOS))


def test_a_token_over_the_boundary_belongs_to_the_completion() -> None:
    tokens = Tokenization(letters(), POLICY)
    assert tokens.completion("text", "xa", "bc") == TokenSequence((BOS, *ids("x")), (AB, *ids("c"), EOS))


def test_the_boundary_of_one_side_does_not_depend_on_the_other() -> None:
    tokens = Tokenization(letters(), POLICY)
    pair = tokens.pair(paired_row("xa", "bc", "cc", "f", 1))
    assert isinstance(pair, tuple)
    assert [len(side.prompt_ids) for side in pair] == [2, 3]
    assert pair == (tokens.completion("text", "xa", "bc"), tokens.completion("text", "xa", "cc"))


@pytest.mark.parametrize(("prompt", "completion"), [("<s>x", "y"), ("<s><s>x", "y</s>"), ("x", "y</s></s>")])
def test_bos_and_eos_are_never_doubled(prompt: str, completion: str) -> None:
    sequence = Tokenization(letters(), POLICY).completion("text", prompt, completion)
    assert sequence == TokenSequence((BOS, *ids("x")), (*ids("y"), EOS))


def test_a_tokenizer_that_closes_its_text_itself_gives_the_same_ids() -> None:
    own = Tokenization(letters(adds_eos=True), POLICY).completion("text", "xy", "z")
    assert own == Tokenization(letters(), POLICY).completion("text", "xy", "z")


def test_without_bos_the_first_token_is_context_and_not_counted() -> None:
    tokens = Tokenization(letters(bos=False), POLICY)
    assert tokens.completion("text", "", "xy") == TokenSequence(ids("x"), (*ids("y"), EOS))
    assert tokens.completion("text", "x", "y") == TokenSequence(ids("x"), (*ids("y"), EOS))
    assert tokens.completion("text", "", "") == Dropped(NOTHING_TO_COUNT)


def test_with_bos_an_empty_prompt_leaves_every_completion_token_counted() -> None:
    tokens = Tokenization(letters(), POLICY)
    assert tokens.completion("text", "", "xy") == TokenSequence((BOS,), (*ids("xy"), EOS))


def test_a_conversation_ends_its_prompt_with_the_generation_prompt_and_its_completion_with_eos() -> None:
    tokens = Tokenization(letters(CHATML), POLICY)
    sequence = tokens.completion("chat", user("hi"), assistant("yo"))
    prompt = (BOS, *ids("<|user>hi"), EOS, *ids("\n<|assistant>"))
    assert sequence == TokenSequence(prompt, (*ids("yo"), EOS))


def test_a_template_that_writes_bos_itself_gives_one() -> None:
    sequence = Tokenization(letters("<s>" + CHATML), POLICY).completion("chat", user("hi"), assistant("yo"))
    assert sequence == Tokenization(letters(CHATML), POLICY).completion("chat", user("hi"), assistant("yo"))


def test_a_template_that_ends_no_turn_gets_an_eos() -> None:
    open_ended = "{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}"
    sequence = Tokenization(letters(open_ended), POLICY).completion("chat", user("hi"), assistant("yo"))
    assert sequence == TokenSequence((BOS, *ids("user:hi\n")), (*ids("assistant:yo\n"), EOS))


def test_an_eos_before_the_last_turn_does_not_cut_that_turn_off() -> None:
    between = "{% for m in messages %}{{ m.content }}{% if not loop.last %}</s>{% endif %}{% endfor %}"
    completion = (*assistant("a"), *user("c"), *assistant("d"))
    sequence = Tokenization(letters(between), POLICY).completion("chat", user("x"), completion)
    assert sequence == TokenSequence((BOS, *ids("x")), (EOS, *ids("a"), EOS, *ids("c"), EOS, *ids("d"), EOS))


def test_conversations_without_a_chat_template_name_the_field_to_mend() -> None:
    with pytest.raises(BadInput, match=r"base_model\.chat_template"):
        Tokenization(letters(), POLICY).completion("chat", user("x"), assistant("y"))


def test_a_row_that_the_template_refuses_is_dropped_with_its_words() -> None:
    strict = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + CHATML
    tokens = Tokenization(letters(strict), POLICY)
    dropped = tokens.completion("chat", ({"role": "system", "content": "x"}, *user("y")), assistant("z"))
    assert dropped == Dropped(TEMPLATE_REFUSED, "no system turn")
    assert isinstance(tokens.completion("chat", user("y"), assistant("z")), TokenSequence)


def cut(truncation: str, limit: int, prompt: str = "stuv", completion: str = "xyz") -> TokenSequence | Dropped:
    policy = TokenPolicy.model_validate({"max_length": limit, "truncation": truncation})
    return Tokenization(letters(), policy).completion("text", prompt, completion)


def test_a_row_of_just_the_limit_is_kept_whole() -> None:
    whole = TokenSequence((BOS, *ids("stuv")), (*ids("xyz"), EOS))
    assert all(cut(truncation, 9) == whole for truncation in ("drop", "keep_start", "keep_end"))


def test_drop_says_how_long_the_row_is() -> None:
    assert cut("drop", 8) == Dropped(TOO_LONG, "9 tokens > max_length 8")


def test_keep_start_cuts_the_completions_end_and_its_eos() -> None:
    assert cut("keep_start", 8) == TokenSequence((BOS, *ids("stuv")), ids("xyz"))
    assert cut("keep_start", 6) == TokenSequence((BOS, *ids("stuv")), ids("x"))
    refused = cut("keep_start", 5)
    assert isinstance(refused, Dropped)
    assert refused.reason == NO_ROOM


def test_keep_end_cuts_the_prompts_start_after_its_bos() -> None:
    assert cut("keep_end", 7) == TokenSequence((BOS, *ids("uv")), (*ids("xyz"), EOS))
    assert cut("keep_end", 5) == TokenSequence((BOS,), (*ids("xyz"), EOS))
    refused = cut("keep_end", 4)
    assert isinstance(refused, Dropped)
    assert refused.reason == TOO_LONG


def short_prompt(truncation: str, most: int, prompt: str = "stuv") -> TokenSequence | Dropped:
    policy = TokenPolicy.model_validate({"max_length": 9, "truncation": truncation, "max_prompt_length": most})
    return Tokenization(letters(), policy).completion("text", prompt, "xyz")


def test_a_longer_prompt_than_its_own_limit_loses_its_start_or_its_row() -> None:
    whole = TokenSequence((BOS, *ids("stuv")), (*ids("xyz"), EOS))
    assert all(short_prompt(truncation, 5) == whole for truncation in TRUNCATIONS)
    for truncation in ("drop", "keep_start"):
        assert short_prompt(truncation, 4) == Dropped(PROMPT_TOO_LONG, "5 tokens > max_prompt_length 4")
    assert short_prompt("keep_end", 3) == TokenSequence((BOS, *ids("uv")), (*ids("xyz"), EOS))
    assert short_prompt("keep_end", 1) == TokenSequence((BOS,), (*ids("xyz"), EOS))
    # both limits hold: of a prompt that fits its own the rest is cut that max_length asks for
    assert short_prompt("keep_end", 8, "stuvstuv") == TokenSequence((BOS, *ids("stuv")), (*ids("xyz"), EOS))


def test_plain_text_becomes_a_conversation_where_the_policy_says_so() -> None:
    policy = TokenPolicy(max_length=1000, plain_text="chat")
    tokens = Tokenization(letters(CHATML), policy)
    assert tokens.completion("text", "hi", "yo") == tokens.completion("chat", user("hi"), assistant("yo"))
    with pytest.raises(BadInput, match=r"base_model\.chat_template"):
        Tokenization(letters(), policy).completion("text", "hi", "yo")


@pytest.mark.parametrize("text", ["a <s> b", "</s>", "x</s>y<s>"])
def test_special_tokens_that_a_person_wrote_are_text(text: str) -> None:
    sequence = Tokenization(letters(), POLICY).completion("text", f"x{text}", f"y{text}z")
    assert sequence == TokenSequence((BOS, *ids(f"x{text}")), (*ids(f"y{text}z"), EOS))


def test_text_that_a_chat_template_wrote_before_keeps_its_special_tokens() -> None:
    tokens = Tokenization(letters(CHATML), POLICY)
    for begins in ("", "<s>"):
        written = f"{begins}</s>x</s>"
        sequence = tokens.completion("text", written, "y</s>")
        assert sequence == TokenSequence((BOS, EOS, *ids("x"), EOS), (*ids("y"), EOS))


def test_an_id_without_an_embedding_is_one_line() -> None:
    vocabulary = len(letters()) - 1
    tokens = Tokenization(letters(), POLICY, vocabulary=vocabulary)
    assert isinstance(tokens.completion("text", "x", "y"), TokenSequence)
    with pytest.raises(BadInput, match=f"id {AB} \\('ab'\\), and the model has embeddings for {vocabulary} only"):
        tokens.completion("text", "x", "yab")


def test_a_completion_that_merges_more_than_two_tokens_of_the_prompt_is_dropped_by_name() -> None:
    library = Tokenizer(models.WordLevel({"<u>": 0, "</s>": 1, "a": 2, "b": 3, "aab": 4, "aaab": 5}, unk_token="<u>"))
    library.pre_tokenizer = pre_tokenizers.Split(Regex("a{2,3}b|."), "isolated")
    tokens = Tokenization(PreTrainedTokenizerFast(tokenizer_object=library, eos_token="</s>"), POLICY)
    assert tokens.completion("text", "baa", "b") == TokenSequence((3,), (4, EOS))
    dropped = tokens.completion("text", "baaa", "b")
    assert dropped == Dropped(PROMPT_MERGED, "the prompt has 4 tokens, and 1 of them begin prompt and answer")


def test_a_pair_is_dropped_when_either_side_is() -> None:
    tokens = Tokenization(letters(), TokenPolicy(max_length=8))
    for chosen, rejected in (("x", "y" * 9), ("y" * 9, "x")):
        dropped = tokens.pair(paired_row("s", chosen, rejected, "f", 1))
        assert isinstance(dropped, Dropped)
        assert dropped.reason == TOO_LONG


def test_more_tokens_than_the_model_has_positions_is_bad_input() -> None:
    with pytest.raises(BadInput, match=r"tokens\.max_length.*1000.*512"):
        Tokenization(letters(), POLICY, max_positions=512)


def test_a_tokenizer_without_eos_is_bad_input() -> None:
    tokenizer = letters()
    tokenizer.eos_token = None
    with pytest.raises(BadInput, match="EOS"):
        Tokenization(tokenizer, POLICY)


TOKENIZERS = {True: letters(), False: letters(bos=False)}
TRUNCATIONS = ("drop", "keep_start", "keep_end")
TEXT = st.text("abxyz ", max_size=12)


@settings(max_examples=200, deadline=None)
@given(
    prompt=TEXT, completion=TEXT, limit=st.integers(2, 30), bos=st.booleans(), truncation=st.sampled_from(TRUNCATIONS)
)
def test_whatever_the_text_a_sequence_fits_has_context_and_is_part_of_the_whole(
    prompt: str, completion: str, limit: int, bos: bool, truncation: str
) -> None:
    tokenizer = TOKENIZERS[bos]
    policy = TokenPolicy.model_validate({"max_length": limit, "truncation": truncation})
    sequence = Tokenization(tokenizer, policy).completion("text", prompt, completion)
    whole = [*tokenizer(prompt + completion)["input_ids"], EOS]
    if isinstance(sequence, Dropped):
        assert len(whole) > limit or len(whole) < 2
        return
    kept = [*sequence.prompt_ids, *sequence.completion_ids]
    assert len(kept) == min(limit, len(whole))
    assert sequence.prompt_ids
    assert sequence.completion_ids
    if truncation == "keep_end":
        assert kept[-1] == EOS
        assert whole[-len(kept) + bos :] == kept[bos:]
    else:
        assert whole[: len(kept)] == kept


CONTENTS = st.text("abxyz<s>/ ", max_size=6)
CONVERSATIONS = st.builds(
    lambda turns, sides: paired_row(
        tuple(one for turn in turns for one in (*user(turn[0]), *assistant(turn[1])))[:-1] or user("x"),
        assistant(sides[0]),
        assistant(sides[1]),
        "f",
        1,
    ),
    st.lists(st.tuples(CONTENTS, CONTENTS), max_size=2),
    st.tuples(CONTENTS, CONTENTS),
)
TEXTS = st.builds(lambda prompt, sides: paired_row(prompt, *sides, "f", 1), CONTENTS, st.tuples(CONTENTS, CONTENTS))
REFUSING = "{% if 'b' in messages[-1].content %}{{ raise_exception('b') }}{% endif %}" + CHATML


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(CONVERSATIONS | TEXTS, max_size=8),
    template=st.sampled_from([CHATML, REFUSING]),
    limit=st.sampled_from([20, 1000]),
    truncation=st.sampled_from(TRUNCATIONS),
)
def test_a_row_has_the_same_ids_in_any_batch(
    rows: list[PreferenceRow], template: str, limit: int, truncation: str
) -> None:
    policy = TokenPolicy.model_validate({"max_length": limit, "truncation": truncation})
    tokens = Tokenization(letters(template), policy)
    assert tokens.pairs(rows) == [Tokenization(letters(template), policy).pair(row) for row in rows]
    assert tokens.pairs(rows[::-1]) == tokens.pairs(rows)[::-1]


def test_a_batch_writes_and_encodes_every_text_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = Tokenization(letters(CHATML), POLICY)
    encoded: list[list[str]] = []
    written: list[int] = []
    encode, write = tokens._encoded, tokens._writer.template._rendered
    monkeypatch.setattr(tokens, "_encoded", lambda texts, **how: encoded.append(texts) or encode(texts, **how))
    monkeypatch.setattr(
        tokens._writer.template, "_rendered", lambda chats, prompt: written.append(len(chats)) or write(chats, prompt)
    )
    rows = [paired_row(user(f"q{n % 3}"), assistant(f"a{n}"), assistant(f"b{n}"), "f", n) for n in range(9)]
    tokens.pairs(rows)
    (texts,) = encoded  # one call: three prompts, and both sides of each row
    assert len(texts) == len(set(texts)) == 3 + 18
    assert written == [18, 3]  # both sides of each row, and each prompt; none has to be written alone as well


@pytest.mark.real_data
def test_a_real_tokenizer_gives_the_ids_of_the_whole_text(real_data: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(real_data / "stories260k")
    tokens = Tokenization(tokenizer, TokenPolicy(max_length=100_000))
    with gzip.open(real_data / "hh_rlhf" / "harmless-base.test.jsonl.gz", "rt", encoding="utf-8") as lines:
        records = [json.loads(line) for _, line in zip(range(60), lines, strict=False)]
    for number, record in enumerate(records, start=1):
        cut_at = record["chosen"].rindex("\n\nAssistant:") + len("\n\nAssistant:")
        row: PreferenceRow = paired_row(record["chosen"][:cut_at], record["chosen"][cut_at:], "no", "f", number)
        pair = tokens.pair(row)
        assert isinstance(pair, tuple)
        joined = [*pair[0].prompt_ids, *pair[0].completion_ids]
        assert joined == [*tokenizer(record["chosen"])["input_ids"], tokenizer.eos_token_id]
        assert joined.count(tokenizer.bos_token_id) == 1
