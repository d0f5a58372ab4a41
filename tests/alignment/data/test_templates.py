"""What a chat template does to a row before it is tokenised: the date, the system message, what it leaves out."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from alignment.data.rows import paired_row
from alignment.data.templates import asks_for_date, ends_answers, with_today, without_end
from alignment.data.tokens import (
    SIDES_EQUAL,
    Tokenization,
    TokenSequence,
    require_few_rewritten,
)
from alignment.data.writing import PROMPT_REWRITTEN, THOUGHT_LEFT_OUT, Dropped
from alignment.errors import BadInput
from alignment.recipe import TokenPolicy

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"] + eos_token }}
    {%- endif %}
{%- endfor %}"""
"""As Mistral-7B-Instruct-v0.3 has it: the system message goes into the last message, if that is the user's."""
GEMMA = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
PHI = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
R1 = (
    "{% for m in messages %}{% if m.role == 'user' %}<|User|>{{ m.content }}{% endif %}"
    "{% if m.role == 'assistant' %}<|Assistant|>{{ m.content.split('</think>')[-1] }}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}"
)
QWEN3 = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.reasoning_content %}<think>\n"
    "{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CLOCK = "{{ '[' + strftime_now('%d %b %Y') + ']' }}"
MARKS = ["[INST]", "[/INST]", "<start_of_turn>", "<end_of_turn>", "<|end|>", "<|User|>", "<|Assistant|>"]
MARKS += ["<think>", "</think>", "<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>"]


def tokenizer(template: str, eos: str = "</s>") -> PreTrainedTokenizerFast:
    """Bytes, and an id for each mark of the templates here."""
    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>", *MARKS]
    library.train_from_iterator(
        [], trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=library, bos_token="<s>", eos_token=eos)
    fast.chat_template = template
    return fast


def tokens(template: str, end_ids: tuple[int, ...] = (), **policy: Any) -> Tokenization:
    return Tokenization(tokenizer(template), TokenPolicy(max_length=4000, **policy), end_ids=end_ids)


def chat(*turns: str, system: str | None = None) -> tuple[dict[str, str], ...]:
    roles = ("user", "assistant")
    messages = [{"role": roles[index % 2], "content": text} for index, text in enumerate(turns)]
    return (*([{"role": "system", "content": system}] if system else []), *messages)


def answer(text: str, **more: str) -> tuple[dict[str, str], ...]:
    return ({"role": "assistant", "content": text, **more},)


def texts(tokenization: Tokenization, sequence: TokenSequence | Dropped) -> tuple[str, str]:
    assert isinstance(sequence, TokenSequence), sequence
    decode = tokenization.tokenizer.decode
    return str(decode(sequence.prompt_ids)), str(decode(sequence.completion_ids))


# The prompt stands as it is, or the row is dropped by name ------------------------------------------


def test_a_system_message_that_moves_once_an_answer_follows_drops_the_row() -> None:
    dropped = tokens(MISTRAL).completion("chat", chat("Hi", system="Be kind."), answer("Hello"))
    assert dropped == Dropped(PROMPT_REWRITTEN)


def test_without_a_system_message_the_same_template_keeps_its_rows() -> None:
    made = tokens(MISTRAL)
    several = chat("Hi", "Hello", "And?")
    assert texts(made, made.completion("chat", several, answer("So."))) == (
        "<s>[INST] Hi[/INST] Hello</s>[INST] And?[/INST]",
        " So.</s>",
    )


def test_first_user_puts_the_system_message_where_mistral_has_it() -> None:
    made = tokens(MISTRAL, system="first_user")
    one, several = chat("Hi", system="Be kind."), chat("Hi", "Hello", "And?", system="Be kind.")
    assert texts(made, made.completion("chat", one, answer("Yes"))) == (
        "<s>[INST] Be kind.\n\nHi[/INST]",
        " Yes</s>",
    )
    assert made.tokenizer.apply_chat_template(list(one), tokenize=False) == "<s>[INST] Be kind.\n\nHi[/INST]"
    assert texts(made, made.completion("chat", several, answer("So.")))[0] == (
        "<s>[INST] Be kind.\n\nHi[/INST] Hello</s>[INST] And?[/INST]"
    )


def test_drop_leaves_the_system_message_out() -> None:
    made = tokens(MISTRAL, system="drop")
    assert made.completion("chat", chat("Hi", system="Be kind."), answer("Yes")) == made.completion(
        "chat", chat("Hi"), answer("Yes")
    )


def test_an_end_that_a_template_writes_behind_everything_drops_no_row() -> None:
    end = tokenizer(PHI).convert_tokens_to_ids("<|end|>")
    made = tokens(PHI, (end,))
    assert texts(made, made.completion("chat", chat("Hi"), answer("Yes"))) == (
        "<|user|>\nHi<|end|>\n<|assistant|>\n",
        "Yes<|end|>",
    )


def test_an_opening_that_only_the_generation_prompt_has_may_be_two_ids_long_and_no_longer() -> None:
    made = tokens(R1)
    assert texts(made, made.completion("chat", chat("Hi"), answer("Yes"))) == ("<|User|>Hi<|Assistant|>", "Yes</s>")
    longer = R1.replace("<think>\n", "<think>\n\n")
    dropped = tokens(longer).completion("chat", chat("Hi"), answer("Yes"))
    assert isinstance(dropped, Dropped)
    assert dropped.reason == PROMPT_REWRITTEN


def test_more_rewritten_rows_than_max_dropped_are_an_error_that_names_the_remedy() -> None:
    policy = TokenPolicy()
    require_few_rewritten({PROMPT_REWRITTEN: 1, "too long": 50}, 0, policy, "m")
    require_few_rewritten({PROMPT_REWRITTEN: 5}, 95, policy, "m")
    with pytest.raises(BadInput, match=r"tokens\.system.*template of m .* 6 of 100 rows \(6\.0%\).*first_user or drop"):
        require_few_rewritten({PROMPT_REWRITTEN: 6}, 94, policy, "m")
    require_few_rewritten({PROMPT_REWRITTEN: 6}, 94, TokenPolicy(max_dropped=0.06), "m")


# Ends ----------------------------------------------------------------------------------------------


def test_an_end_of_turn_that_is_an_end_of_the_checkpoint_gets_no_eos_behind_it() -> None:
    end = tokenizer(GEMMA).convert_tokens_to_ids("<end_of_turn>")
    made = tokens(GEMMA, (end,))
    assert texts(made, made.completion("chat", chat("Hi"), answer("Yes")))[1] == "Yes<end_of_turn>"
    other = tokens(GEMMA)
    assert texts(other, other.completion("chat", chat("Hi"), answer("Yes")))[1] == "Yes<end_of_turn>\n</s>"


def test_ends_at_the_close_of_a_text_are_cut_and_text_without_one_is_left_as_it_is() -> None:
    ends = ("</s>", "<|end|>")
    assert without_end("a <|end|>\n</s>\n", ends) == "a "
    assert without_end("a</s>b \n", ends) == "a</s>b \n"
    assert without_end("</s>", ends) == ""


# What the row says ---------------------------------------------------------------------------------


def test_a_thought_that_the_template_cuts_drops_the_row() -> None:
    think = "<think>\nIce is frozen water.\n</think>\n\nYes."
    other = "<think>\nAll things are cold.\n</think>\n\nYes."
    pair = tokens(R1).pair(paired_row(chat("Is ice cold?"), answer(think), answer(other), "f", 1))
    assert pair == Dropped(THOUGHT_LEFT_OUT)
    # R1's generation prompt opens the thought, so that answers have its close alone
    assert tokens(R1).completion("chat", chat("x"), answer("Water.\n</think>\nYes.")) == Dropped(THOUGHT_LEFT_OUT)
    assert isinstance(tokens(R1).completion("chat", chat("x"), answer("<think>\n\n</think>\n\nYes.")), TokenSequence)
    kept = tokens(CHATML)
    assert "Ice is frozen water." in texts(kept, kept.completion("chat", chat("x"), answer(think)))[1]


@pytest.mark.parametrize("field", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_reaches_the_template_or_drops_the_row(field: str) -> None:
    made = tokens(QWEN3)
    said = answer("Yes.", **{field: "Because."})
    assert texts(made, made.completion("chat", chat("x"), said))[1].startswith(
        "<think>\nBecause.\n</think>\n\nYes.<|im_end|>"
    )
    assert tokens(CHATML).completion("chat", chat("x"), said) == Dropped(THOUGHT_LEFT_OUT)


def test_sides_that_become_the_same_ids_are_dropped() -> None:
    row = paired_row(chat("x"), answer("Yes."), answer("Yes.\n"), "f", 1)
    assert tokens(GEMMA).pair(row) == Dropped(SIDES_EQUAL)
    assert isinstance(tokens(CHATML).pair(row), tuple)


# The date ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "template",
    [
        CLOCK,
        "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
        "[{{ date_string }}]",
        "{% if strftime_now is defined %}{% set day = strftime_now('%d %b %Y') %}{% else %}{% set day = 'x' %}"
        "{% endif %}[{{ day }}]",
        "[{{ date_string }}]",
        "{% macro day() %}{{ strftime_now('%d %b %Y') }}{% endmacro %}{% generation %}[{{ day() }}]{% endgeneration %}",
    ],
)
def test_a_template_that_asks_for_the_date_gets_the_constant(template: str) -> None:
    assert asks_for_date(template + CHATML)
    for settings, day in (({}, "26 Jul 2024"), ({"today": date(2025, 1, 2)}, "02 Jan 2025")):
        made = tokens(template + CHATML, **settings)
        prompt, _ = texts(made, made.completion("chat", chat("x"), answer("y")))
        assert prompt == f"[{day}]<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n"


def test_every_way_to_write_the_day_is_the_same_as_the_clocks() -> None:
    formats = ["%Y-%m-%d", "%A, %B %d, %Y", "%-d %b", "%H:%M:%S", "%j %%", "%y/%m"]
    template = "".join(f"{{{{ strftime_now({one!r}) }}}};" for one in formats)
    today = date(2024, 3, 5)
    made = tokenizer(with_today(template, today)).apply_chat_template(list(chat("x")), tokenize=False)
    assert made == "".join(today.strftime(one) + ";" for one in formats)


@pytest.mark.parametrize(
    "template", [CHATML, "strftime_now" + CHATML, "{# strftime_now #}{{ 'date_string' }}" + CHATML, "{% if %}", None]
)
def test_a_template_that_does_not_ask_for_the_date_stays_as_it_is(template: str | None) -> None:
    assert not asks_for_date(template)
    assert template is None or with_today(template) == template


def test_a_template_with_a_date_of_its_own_keeps_it() -> None:
    own = "{% if not date_string is defined %}{% set date_string = '1 Jan 2020' %}{% endif %}{{ date_string }}"
    assert not asks_for_date(own)


def test_white_space_at_a_dated_templates_start_stays() -> None:
    plain, dated = "\n  {% if true %}x{% endif %}", "\n  {% if true %}x{{ strftime_now('') }}{% endif %}"
    made = [tokenizer(with_today(one)).apply_chat_template(list(chat("x")), tokenize=False) for one in (plain, dated)]
    assert made[0] == made[1]


@pytest.mark.parametrize(
    ("template", "ends", "told"),
    [
        (CHATML, ["<|im_end|>"], True),
        (MISTRAL, ["</s>"], True),
        (GEMMA, ["</s>", "<end_of_turn>"], True),
        (R1, ["</s>"], True),
        (CHATML, ["</s>"], False),
        (PHI, ["</s>"], False),
        (MISTRAL.replace(" + eos_token", ""), ["</s>"], False),
        ("{% for m in messages %}{{ m.content }}\n {{ eos_token }}{% endfor %}", ["</s>"], True),
        ("{% for m in messages %}{{ m.role }}{{ eos_token }}{% endfor %}", ["</s>"], None),
        ("{{ raise_exception('no') }}", ["</s>"], None),
        ("{% for", ["</s>"], None),
    ],
)
def test_a_template_without_an_end_behind_an_answer_is_told_from_one_with(
    template: str, ends: list[str], told: bool | None
) -> None:
    assert ends_answers(tokenizer(template), ends) is told
