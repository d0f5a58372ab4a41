"""Every known form becomes the same kind of row; everything else has a reason."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.data.forms.table import FORMS, columns_of, normalise
from alignment.data.readers import Record
from alignment.data.rows import PreferenceRow
from alignment.data.validate import Validation
from alignment.recipe import Reading


def u(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def a(text: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def s(text: Any) -> dict[str, Any]:
    return {"role": "system", "content": text}


def row_of(record: Any) -> PreferenceRow:
    row = normalise(record, "file.jsonl", 3)
    assert isinstance(row, PreferenceRow), row
    assert (row.source, row.source_row) == ("file.jsonl", 3)
    return row


TURNS = (u("q"), a("x"), u("q2"))
SAME_CHAT = [
    {"prompt": list(TURNS), "chosen": [a("good")], "rejected": [a("bad")]},
    {"prompt": list(TURNS), "chosen": a("good"), "rejected": a("bad")},
    {"prompt": list(TURNS), "chosen": "good", "rejected": "bad"},
    {"prompt": list(TURNS), "chosen": [*TURNS, a("good")], "rejected": [*TURNS, a("bad")]},
    {"chosen": [*TURNS, a("good")], "rejected": [*TURNS, a("bad")]},
    {"prompt": "q", "chosen": [*TURNS, a("good")], "rejected": [*TURNS, a("bad")], "messages": [*TURNS, a("good")]},
    {"prompt": None, "chosen": [*TURNS, a("good")], "rejected": [*TURNS, a("bad")], "label": None},
    {
        "conversations": [
            {"from": "human", "value": "q"},
            {"from": "gpt", "value": "x"},
            {"from": "human", "value": "q2"},
        ],
        "chosen": {"from": "gpt", "value": "good"},
        "rejected": {"from": "gpt", "value": "bad"},
    },
    {"messages": list(TURNS), "chosen": a("good"), "rejected": a("bad")},
    {"instruction": "q2", "history": [["q", "x"]], "chosen": "good", "rejected": "bad"},
    {"prompt": [{**turn, "name": None} for turn in TURNS], "chosen": [a("good")], "rejected": [a("bad")], "tools": []},
    {"prompt": list(TURNS), "chosen": [a([{"type": "text", "text": "good"}])], "rejected": [a("bad")]},
    {
        "prompt": [{**turn, "from": None, "value": None} for turn in TURNS],
        "chosen": [{"from": "gpt", "value": "good", "role": None, "content": None}],
        "rejected": [a("bad")],
    },
]


@pytest.mark.parametrize("record", SAME_CHAT)
def test_one_conversation_is_one_row_in_whatever_form_it_comes(record: dict[str, Any]) -> None:
    row = row_of(record)
    assert (row.form, row.prompt, row.chosen, row.rejected) == ("chat", TURNS, (a("good"),), (a("bad"),))
    assert row.row_id == row_of(SAME_CHAT[0]).row_id


@pytest.mark.parametrize(
    "record",
    [
        {"system": "be kind", "conversations": [u("q")], "chosen": a("good"), "rejected": a("bad")},
        {"conversations": [s("be kind"), u("q")], "chosen": a("good"), "rejected": a("bad")},
        {"system": "be kind", "instruction": "q", "input": "", "chosen": "good", "rejected": "bad"},
        {"chosen": [s("be kind"), u("q"), a("good")], "rejected": [s("be kind"), u("q"), a("bad")]},
    ],
)
def test_a_system_message_leads_the_prompt(record: dict[str, Any]) -> None:
    assert row_of(record).prompt == (s("be kind"), u("q"))


def test_a_string_prompt_with_single_answers_is_a_user_message() -> None:
    assert row_of({"prompt": "q", "chosen": [a("good")], "rejected": [a("bad")]}).prompt == (u("q"),)


def test_plain_strings_stay_plain_text_to_the_last_space() -> None:
    row = row_of({"prompt": " q\n", "chosen": " good ", "rejected": "bad\n"})
    assert (row.form, row.prompt, row.chosen, row.rejected) == ("text", " q\n", " good ", "bad\n")


dialogue = st.lists(st.text(max_size=10).filter(lambda text: "Assistant" not in text), min_size=1, max_size=3)
reply = st.text(min_size=1, max_size=10).filter(lambda text: bool(text.strip()) and "Assistant" not in text)


@given(asked=dialogue, chosen=reply, rejected=reply)
def test_an_hh_pair_is_split_at_the_last_assistant_turn_and_nothing_is_lost(
    asked: list[str], chosen: str, rejected: str
) -> None:
    prompt = "\n\nAssistant: fine".join(f"\n\nHuman: {text}" for text in asked) + "\n\nAssistant:"
    row = normalise({"chosen": prompt + chosen, "rejected": prompt + rejected}, "f", 1)
    if chosen == rejected:
        assert row == "chosen equals rejected"
    else:
        assert isinstance(row, PreferenceRow)
        assert (row.form, row.prompt, row.chosen, row.rejected) == ("text", prompt, chosen, rejected)


@pytest.mark.parametrize("label", [True, 1, "true", "True", "1"])
def test_unpaired_rows_carry_their_label(label: Any) -> None:
    row = row_of({"prompt": "p", "completion": "c", "label": label})
    assert (row.form, row.prompt, row.completion, row.label, row.paired) == ("text", "p", "c", True, False)


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": [u("q")], "completion": [a("x")], "label": False},
        {"prompt": "q", "completion": [a("x")], "label": False},
        {"messages": [u("q"), a("x")], "label": False},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "x"}], "kto_tag": False},
        {"messages": [u("q"), a("x")], "label": "false", "chosen": None, "rejected": None},
    ],
)
def test_an_unpaired_conversation_is_one_row_in_whatever_form_it_comes(record: dict[str, Any]) -> None:
    row = row_of(record)
    assert (row.form, row.prompt, row.completion, row.label) == ("chat", (u("q"),), (a("x"),), False)


PAIR = {"prompt": "p", "chosen": "c", "rejected": "r"}
CHAT = {"prompt": [u("q")], "chosen": [a("c")], "rejected": [a("r")]}


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ("text", "not an object"),
        (None, "not an object"),
        ([1], "not an object"),
        ({}, "unknown form"),
        ({"text": "x"}, "unknown form"),
        ({**PAIR, "prompt": " \n"}, "empty prompt"),
        ({**PAIR, "chosen": ""}, "empty chosen"),
        ({**PAIR, "rejected": " \t\u00a0"}, "empty rejected"),
        ({**PAIR, "rejected": "c"}, "chosen equals rejected"),
        ({**PAIR, "rejected": None}, "missing field rejected"),
        ({"prompt": "p", "rejected": "r"}, "missing field chosen"),
        ({"chosen": "c", "rejected": "r"}, "missing field prompt"),
        ({"prompt": "p"}, "missing field chosen"),
        ({"prompt": "p", "completion": "c"}, "missing field label"),
        ({"completion": "c", "label": True}, "missing field prompt"),
        ({"prompt": "p", "label": True}, "missing field completion"),
        ({"prompt": "p", "completion": " ", "label": True}, "empty completion"),
        ({"prompt": "p", "completion": "c", "label": 0.5}, "label is not true or false"),
        ({"prompt": "p", "completion": "c", "label": "maybe"}, "label is not true or false"),
        ({**PAIR, "chosen": 3}, "chosen and rejected have different forms"),
        ({**PAIR, "chosen": 3, "rejected": 4}, "chosen is not a list of messages"),
        ({**PAIR, "prompt": 3}, "prompt is not a list of messages"),
        ({**PAIR, "chosen": "\ud800"}, "not valid Unicode"),
        ({**PAIR, "system": "be kind"}, "system beside plain strings"),
        ({**CHAT, "chosen": [a("  ")]}, "empty chosen"),
        ({**CHAT, "chosen": [a(None)]}, "chosen is not text"),
        ({**CHAT, "chosen": [a([{"type": "image"}])]}, "chosen holds image parts, and only text is read"),
        ({**CHAT, "chosen": []}, "wrong roles"),
        ({**CHAT, "chosen": [u("c")]}, "wrong roles"),
        ({**CHAT, "prompt": [u("q"), a("half")]}, "wrong roles"),
        ({**CHAT, "prompt": [u("q"), s("late"), u("q")]}, "wrong roles"),
        ({**CHAT, "prompt": [{"role": "tool", "content": "3"}]}, "tools are not supported"),
        ({**CHAT, "prompt": [{"from": "Observation", "value": "3"}]}, "tools are not supported"),
        ({**CHAT, "prompt": [{"role": "Narrator", "content": "3"}]}, "unknown role 'narrator'"),
        ({**CHAT, "prompt": [{"role": ["user"], "content": "3"}]}, "wrong roles"),
        ({**CHAT, "prompt": [s("only")]}, "empty prompt"),
        ({**CHAT, "prompt": []}, "empty prompt"),
        ({**CHAT, "tools": [{"name": "search"}]}, "tools are not supported"),
        ({**CHAT, "chosen": [{**a(""), "tool_calls": [1]}]}, "tools are not supported"),
        ({"chosen": [u("q"), a("c")], "rejected": [u("other"), a("r")]}, "prompts differ"),
        ({"chosen": [u("q"), a("c"), u("more"), a("c2")], "rejected": [u("q"), a("r")]}, "prompts differ"),
        ({"prompt": "z", "chosen": [u("q"), a("c")], "rejected": [u("q"), a("r")]}, "prompts differ"),
        ({"chosen": [a("c")], "rejected": [a("r")]}, "missing field prompt"),
        (
            {"chosen": "\n\nHuman: x\n\nAssistant: y", "rejected": "\n\nHuman: z\n\nAssistant: y"},
            "prompts differ",
        ),
        ({"messages": [u("q"), a("x"), u("bye")], "label": True}, "wrong roles"),
        ({"instruction": "q", "history": ["x"], "chosen": "c", "rejected": "r"}, "history is not a list of pairs"),
        ({"instruction": "q", "history": True, "chosen": "c", "rejected": "r"}, "history is not a list of pairs"),
    ],
)
def test_a_record_that_is_no_preference_has_a_reason(record: Any, reason: str) -> None:
    assert normalise(record, "f", 1) == reason


WRITTEN = [u("q"), a('it\'s "good"\n')]


@pytest.mark.parametrize("write", [json.dumps, repr, lambda value: f" {json.dumps(value, indent=2)}\n"])
def test_messages_written_as_text_are_messages(write: Any) -> None:
    row = row_of({"prompt": "q", "chosen": write(WRITTEN), "rejected": write([u("q"), a("bad")])})
    assert (row.prompt, row.chosen, row.rejected) == ((u("q"),), (WRITTEN[1],), (a("bad"),))
    assert row == row_of({"prompt": write([u("q")]), "chosen": write(WRITTEN[1]), "rejected": write([a("bad")])})
    unpaired = row_of({"prompt": write([u("q")]), "completion": write([a("x")]), "label": "true"})
    assert unpaired == row_of({"messages": write([u("q"), a("x")]), "label": True})
    shared = write([{"from": "human", "value": "q"}, {"from": "gpt", "value": "x"}])
    assert unpaired == row_of({"conversations": shared, "kto_tag": True})


@pytest.mark.parametrize(
    "cell",
    [
        "[{'role': 'user', 'content': 'q'}\n {'role': 'assistant', 'content': 'x'}]",  # as NumPy writes them
        '[{"role": "user", "content": "q"}, {"role": "assis',
        "[{'role': 'us",
        "array([{'content': 'q', 'role': 'user'}], dtype=object)",
        '{"id": 1, "role": "user", "content": "cut o',
    ],
)
def test_messages_written_as_text_that_cannot_be_read_have_a_reason(cell: str) -> None:
    reason = "chosen is messages written as text that cannot be read"
    assert normalise({**PAIR, "chosen": cell}, "f", 1) == reason


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "Ann", "age": 3}',
        '{"role": "admin", "rights": []}',
        '[{"role": "admin"}]',
        "{'role': admin}",
        "[1, 2]",
        "{x}",
        '"role": "user", "content": "q"',
        'Send [{"role": "user", "content": "q"}] to it.',
    ],
)
def test_other_data_written_as_text_stays_text(text: str) -> None:
    assert row_of({**PAIR, "chosen": text}).chosen == text


def test_step_dpos_earlier_steps_are_prompt() -> None:
    steps = {"prompt": "p?", "initial_reason_steps": "Step 1: a.\nStep 2:", "chosen": " b", "rejected": " c"}
    row = row_of(steps)
    assert (row.prompt, row.chosen, row.rejected) == ("p?\nStep 1: a.\nStep 2:", " b", " c")
    assert row_of({**steps, "prompt": "p?\n"}) == row
    assert row_of({**steps, "initial_reason_steps": ""}).prompt == "p?"
    unpaired = {"prompt": "p?", "initial_reason_steps": "Step 1:", "completion": " b", "label": True}
    assert row_of(unpaired).prompt == "p?\nStep 1:"
    reason = "initial_reason_steps without a prompt of plain text"
    for record in (
        {**CHAT, "initial_reason_steps": "s"},
        {"chosen": "\n\nHuman: x\n\nAssistant: y", "rejected": "\n\nHuman: x\n\nAssistant: z"},
        {"messages": [u("q"), a("x")], "label": True},
    ):
        assert normalise({**record, "initial_reason_steps": "s"}, "f", 1) == reason
    assert normalise({**steps, "initial_reason_steps": ["s"]}, "f", 1) == "initial_reason_steps is not text"


@pytest.mark.parametrize("field", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_is_part_of_a_message_and_of_its_rows_id(field: str) -> None:
    thinking = row_of({**CHAT, "chosen": [{**a("c"), field: "because"}]})
    assert thinking.chosen == ({**a("c"), field: "because"},)
    assert thinking.row_id != row_of(CHAT).row_id
    assert row_of({**CHAT, "chosen": [{**a("c"), field: "why"}]}).row_id != thinking.row_id
    for empty in (None, ""):
        assert row_of({**CHAT, "chosen": [{**a("c"), field: empty}]}) == row_of(CHAT)
    reason = normalise({**CHAT, "chosen": [{**a("c"), field: ["x"]}]}, "f", 1)
    assert reason == f"{field} of chosen is not text"


def test_rows_without_such_fields_keep_their_ids() -> None:
    recorded = ("9df5644d4707fd35a1515b1fb3b090a1", "fd914e83a14610b6dab078294a2a2ce2")
    assert (row_of(PAIR).row_id, row_of(CHAT).row_id) == recorded


names = st.sampled_from(
    [
        *("prompt", "chosen", "rejected", "completion", "label", "messages", "conversations", "instruction"),
        *("input", "system", "history", "role", "content", "from", "value", "tools"),
    ]
)
inner_names = st.sampled_from(
    [
        *("role", "content", "from", "value", "text", "replies", "rank", "answer", "response", "overall_score"),
        *("annotations", "Rating", "pm_score", "full_text", "messages", "type", "post", "helpfulness"),
    ]
)
plain = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.sampled_from(["user"]))
anything = st.recursive(
    plain, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(names, inner, max_size=4))
)


@st.composite
def formed(draw: st.DrawFn) -> dict[str, Any]:
    """A record with the columns of a form and anything in them."""
    below = st.recursive(
        plain, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(inner_names, inner, max_size=4))
    )
    form = draw(st.sampled_from(FORMS))
    columns = [
        draw(st.sampled_from(sorted(either)))
        for either in columns_of(draw(st.sampled_from([form.columns, form.once_gathered or form.columns])))
    ]
    return {column: draw(below) for column in columns}


@given(records=st.lists(formed(), min_size=1, max_size=3), pairing=st.sampled_from(["best_worst", "all", "random"]))
def test_no_json_value_makes_the_reader_of_any_form_fail(records: Any, pairing: Any) -> None:
    validation = Validation(reading=Reading(pairing=pairing, min_score_gap=1, min_score_ratio=1.5, labels={"x": True}))
    rows = list(validation.accepted((Record(n, value=v) for n, v in enumerate(records, start=1)), "f"))
    assert validation.records == len(records)
    assert len(rows) + len(validation.quarantined) >= 1
    validation.advice("f")


@given(record=st.dictionaries(names, anything))
def test_no_json_value_makes_the_reader_fail(record: Any) -> None:
    outcome = normalise(record, "f", 1)
    if isinstance(outcome, PreferenceRow):
        json.dumps([outcome.prompt, outcome.chosen, outcome.rejected, outcome.completion])
    else:
        assert outcome


def test_messages_that_were_written_as_text_twice_are_messages_and_other_quoted_text_stays_as_it_is() -> None:
    said = [{"role": "assistant", "content": "Blue."}], [{"role": "assistant", "content": "No."}]
    twice = {side: json.dumps(json.dumps(turns)) for side, turns in zip(("chosen", "rejected"), said, strict=True)}
    plain = normalise({"prompt": "A colour?", "chosen": said[0], "rejected": said[1]}, "f", 1)
    assert normalise({"prompt": "A colour?"} | twice, "f", 1) == plain
    for quoted in ('"{\\"a\\": 1}"', '"[{\\"a', '"yes"'):
        row = normalise({"prompt": "Write JSON.", "chosen": quoted, "rejected": "no"}, "f", 1)
        assert isinstance(row, PreferenceRow) and row.chosen == quoted
