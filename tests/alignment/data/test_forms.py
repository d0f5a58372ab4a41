"""Every published form is read, row by row, and what is in none says what to do."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from alignment.data.forms.advice import advice
from alignment.data.forms.gathered import gathered
from alignment.data.forms.table import FORMS, Outcome, columns_of, read_record
from alignment.data.readers import Record, read_records
from alignment.data.rows import PreferenceRow
from alignment.data.validate import Validation
from alignment.recipe import Reading

QUESTION, GOOD, BAD, FAIR = "Name a colour of the sky.", "Blue, by day.", "Seven.", "It has one."


def u(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def a(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def turn(name: str, text: str) -> dict[str, str]:
    return {"from": name, "value": text}


CHAT = ((u(QUESTION),), (a(GOOD),), (a(BAD),))
TEXT = (QUESTION, GOOD, BAD)
THUMB = ((u(QUESTION),), (a(GOOD),), True)
HH = f"\n\nHuman: {QUESTION}\n\nAssistant:"


def ratings(**aspects: Any) -> dict[str, Any]:
    return {name: {"Rating": rating, "Rationale": "…"} for name, rating in aspects.items()}


def completion(text: str, score: float | None, **aspects: Any) -> dict[str, Any]:
    return {
        "annotations": ratings(**aspects),
        "custom_system_prompt": "…",
        "model": "m",
        "principle": "helpfulness",
        "response": text,
        "critique": "…",
        "overall_score": score,
    }


def message(number: int, parent: int | None, role: str, text: str, rank: int | None = None) -> dict[str, Any]:
    """A flat OASST message with the columns of the published table."""
    return {
        "message_id": f"m{number}",
        "parent_id": None if parent is None else f"m{parent}",
        "user_id": "x",
        "created_date": "2023-02-05T14:23:50.983374+00:00",
        "text": text,
        "role": role,
        "lang": "en",
        "review_count": 3,
        "review_result": True,
        "deleted": False,
        "rank": rank,
        "synthetic": False,
        "model_name": None,
        "message_tree_id": "m0",
        "tree_state": "ready_for_export",
    }


def nested(flat: dict[str, Any], *replies: dict[str, Any]) -> dict[str, Any]:
    return {**flat, "replies": list(replies)}


MESSAGES = [
    message(0, None, "prompter", QUESTION),
    message(1, 0, "assistant", GOOD, 0),
    message(2, 0, "assistant", BAD, 1),
]
SCORED = {"instruction": QUESTION, "source": "s", "models": ["m"], "correct_answers": ["None"]}

# (form, what else it is called, records as they are published, the row that they become, its scores)
Published = tuple[str, str, list[dict[str, Any]], tuple[Any, Any, Any], tuple[float | None, float | None]]
NO_SCORES = (None, None)
PUBLISHED: list[Published] = [
    ("pairs", "TRL standard", [{"prompt": QUESTION, "chosen": GOOD, "rejected": BAD}], TEXT, NO_SCORES),
    (
        "pairs",
        "TRL conversational",
        [{"prompt": [u(QUESTION)], "chosen": [a(GOOD)], "rejected": [a(BAD)]}],
        CHAT,
        NO_SCORES,
    ),
    (
        "pairs",
        "UltraFeedback binarized",
        [
            {
                "prompt": QUESTION,
                "prompt_id": "0f",
                "chosen": [u(QUESTION), a(GOOD)],
                "rejected": [u(QUESTION), a(BAD)],
                "messages": [u(QUESTION), a(GOOD)],
                "score_chosen": 8.5,
                "score_rejected": 4.0,
            }
        ],
        CHAT,
        (8.5, 4.0),
    ),
    (
        "pairs",
        "Tülu 3",
        [
            {
                "id": "1",
                "source": "s",
                "prompt": QUESTION,
                "chosen": [u(QUESTION), a(GOOD)],
                "rejected": [u(QUESTION), a(BAD)],
                "chosen_rating": 4.75,
                "rejected_rating": 2.0,
                "chosen_model": "m",
                "rejected_model": "n",
            }
        ],
        CHAT,
        (4.75, 2.0),
    ),
    (
        "pairs",
        "argilla, cleaned",
        [
            {
                "source": "s",
                "prompt": QUESTION,
                "chosen": [u(QUESTION), a(GOOD)],
                "chosen-rating": 5.0,
                "chosen-model": "m",
                "rejected": [u(QUESTION), a(BAD)],
                "rejected-rating": 1.5,
                "rejected-model": "n",
            }
        ],
        CHAT,
        (5.0, 1.5),
    ),
    (
        "pairs with the prompt in both",
        "argilla's DPO mix, Capybara, Skywork",
        [
            {
                "source": "s",
                "chosen": [u(QUESTION), a(GOOD)],
                "rejected": [u(QUESTION), a(BAD)],
                "chosen_rating": 5,
                "rejected_rating": 4,
            }
        ],
        CHAT,
        (5.0, 4.0),
    ),
    (
        "pairs with the prompt in both",
        "HH-RLHF",
        [{"chosen": f"{HH} {GOOD}", "rejected": f"{HH} {BAD}"}],
        (HH, f" {GOOD}", f" {BAD}"),
        NO_SCORES,
    ),
    (
        "Step-DPO",
        "Math-Step-DPO",
        [
            {
                "dataset": "d",
                "prompt": QUESTION,
                "initial_reason_steps": "Step 1: Look up.",
                "chosen": GOOD,
                "rejected": BAD,
                "full_chosen": "…",
                "full_rejected": "…",
                "answer": "blue",
            }
        ],
        (f"{QUESTION}\nStep 1: Look up.", GOOD, BAD),
        NO_SCORES,
    ),
    (
        "Alpaca pairs",
        "LLaMA-Factory alpaca",
        [{"instruction": "Name a colour", "input": "of the sky.", "chosen": GOOD, "rejected": BAD}],
        ((u("Name a colour\n\nof the sky."),), (a(GOOD),), (a(BAD),)),
        NO_SCORES,
    ),
    (
        "ShareGPT pairs",
        "LLaMA-Factory sharegpt",
        [
            {
                "conversations": [turn("human", QUESTION)],
                "chosen": turn("gpt", GOOD),
                "rejected": turn("gpt", BAD),
            }
        ],
        CHAT,
        NO_SCORES,
    ),
    (
        "orca pairs",
        "Intel/orca_dpo_pairs, chatml.intel",
        [{"system": "Be brief.", "question": QUESTION, "chosen": GOOD, "rejected": BAD}],
        (({"role": "system", "content": "Be brief."}, u(QUESTION)), (a(GOOD),), (a(BAD),)),
        NO_SCORES,
    ),
    (
        "orca pairs",
        "argilla/distilabel-intel-orca-dpo-pairs, chatml.icr",
        [
            {
                "system": "",
                "input": QUESTION,
                "chosen": GOOD,
                "rejected": BAD,
                "generations": [GOOD, BAD],
                "order": ["m", "n"],
                "rating": [9.0, 3.0],
                "rationale": "…",
                "status": "unchanged",
                "chosen_score": 9.0,
            }
        ],
        CHAT,
        NO_SCORES,
    ),
    (
        "argilla pairs",
        "argilla/ultrafeedback-binarized-preferences, chatml.argilla",
        [
            {
                "source": "s",
                "instruction": QUESTION,
                "chosen_response": GOOD,
                "rejected_response": BAD,
                "chosen_avg_rating": 4.75,
                "rejected_avg_rating": 3.25,
                "chosen_model": "m",
            }
        ],
        CHAT,
        (4.75, 3.25),
    ),
    (
        "OpenAI preferences",
        "Together, Fireworks",
        [
            {
                "input": {"messages": [u(QUESTION)], "tools": [], "parallel_tool_calls": True},
                "preferred_output": [a(GOOD)],
                "non_preferred_output": [a(BAD)],
            }
        ],
        CHAT,
        NO_SCORES,
    ),
    (
        "StackExchange pairs",
        "lvwerra/stack-exchange-paired",
        [
            {
                "qid": 1,
                "question": QUESTION,
                "date": "2010/11/02",
                "metadata": ["…"],
                "response_j": GOOD,
                "response_k": BAD,
            }
        ],
        CHAT,
        NO_SCORES,
    ),
    (
        "StackExchange answers",
        "HuggingFaceH4/stack-exchange-preferences",
        [
            {
                "qid": 1,
                "question": QUESTION,
                "answers": [
                    {"answer_id": 2, "author": "x", "pm_score": 1, "selected": False, "text": BAD},
                    {"answer_id": 3, "author": "y", "pm_score": 5, "selected": True, "text": GOOD},
                ],
                "date": "2010/11/02",
            }
        ],
        CHAT,
        (5.0, 1.0),
    ),
    (
        "UltraFeedback",
        "openbmb/UltraFeedback",
        [{**SCORED, "completions": [completion(BAD, 3.0), completion(FAIR, 6.0), completion(GOOD, 8.5)]}],
        CHAT,
        (8.5, 3.0),
    ),
    (
        "UltraFeedback",
        "without an overall score",
        [
            {
                **SCORED,
                "completions": [
                    completion(GOOD, None, helpfulness="5", honesty="4"),
                    completion(BAD, None, helpfulness="1", honesty="N/A"),
                ],
            }
        ],
        CHAT,
        (4.5, 1.0),
    ),
    (
        "distilabel",
        "distilabel's UltraFeedback task",
        [{"instruction": QUESTION, "generations": [BAD, GOOD], "ratings": [1.0, 5.0], "rationales": ["…", "…"]}],
        CHAT,
        (5.0, 1.0),
    ),
    (
        "Nectar",
        "berkeley-nest/Nectar",
        [
            {
                "prompt": f"{HH} ",
                "answers": [
                    {"answer": GOOD, "model": "m", "rank": 1.0},
                    {"answer": FAIR, "model": "n", "rank": 2.0},
                    {"answer": BAD, "model": "o", "rank": 3.0},
                ],
                "turns": 1,
                "num_responses": 3,
            }
        ],
        (HH, f" {GOOD}", f" {BAD}"),
        NO_SCORES,
    ),
    (
        "ranked responses",
        "any N-way data",
        [{"prompt": QUESTION, "responses": [FAIR, GOOD, BAD], "scores": [0.5, 0.9, 0.1]}],
        TEXT,
        (0.9, 0.1),
    ),
    (
        "ranked responses",
        "by rank",
        [{"prompt": [u(QUESTION)], "responses": [[a(GOOD)], [a(BAD)]], "ranks": [1, 2]}],
        CHAT,
        NO_SCORES,
    ),
    (
        "HelpSteer 2",
        "nvidia/HelpSteer2",
        [
            {
                "prompt": QUESTION,
                "response": text,
                "helpfulness": score,
                "correctness": 3,
                "coherence": 4,
                "complexity": 1,
                "verbosity": 1,
            }
            for text, score in ((BAD, 1), (GOOD, 4))
        ],
        CHAT,
        (4.0, 1.0),
    ),
    (
        "HelpSteer 2 preferences",
        "nvidia/HelpSteer2, preference",
        [
            {
                "split": "train",
                "prompt": QUESTION,
                "response_1": BAD,
                "response_2": GOOD,
                "preference_strength": 2,
                "preference_statement": "…",
            }
        ],
        CHAT,
        NO_SCORES,
    ),
    (
        "HelpSteer 3",
        "nvidia/HelpSteer3, preference",
        [
            {
                "domain": "general",
                "language": "english",
                "context": [u(QUESTION)],
                "response1": GOOD,
                "response2": BAD,
                "overall_preference": -2,
                "individual_preference": [],
            }
        ],
        CHAT,
        NO_SCORES,
    ),
    (
        "Chatbot Arena",
        "lmsys/chatbot_arena_conversations, lmarena-ai/arena-human-preference-140k, MT-Bench's judgments",
        [
            {
                "question_id": "q",
                "model_a": "m",
                "model_b": "n",
                "winner": "model_b",
                "judge": "j",
                "conversation_a": [u(QUESTION), a(BAD)],
                "conversation_b": [u(QUESTION), a(GOOD)],
                "turn": 1,
                "language": "English",
            }
        ],
        CHAT,
        NO_SCORES,
    ),
    (
        "Arena table",
        "lmsys/lmsys-arena-human-preference-55k",
        [
            {
                "id": 1,
                "model_a": "m",
                "model_b": "n",
                "prompt": json.dumps([QUESTION]),
                "response_a": json.dumps([GOOD]),
                "response_b": json.dumps([BAD]),
                "winner_model_a": 1,
                "winner_model_b": 0,
                "winner_tie": 0,
            }
        ],
        CHAT,
        NO_SCORES,
    ),
    (
        "SHP",
        "stanfordnlp/SHP",
        [
            {
                "post_id": "p",
                "domain": "askscience_train",
                "upvote_ratio": 0.9,
                "history": QUESTION,
                "score_A": 4,
                "score_B": 12,
                "human_ref_A": BAD,
                "human_ref_B": GOOD,
                "labels": 0,
                "seconds_difference": 3.0,
                "score_ratio": 3.0,
            }
        ],
        CHAT,
        (12.0, 4.0),
    ),
    (
        "WebGPT",
        "openai/webgpt_comparisons",
        [
            {
                "question": {"dataset": "eli5", "id": "x", "full_text": QUESTION},
                "quotes_0": {"title": [], "extract": []},
                "answer_0": BAD,
                "tokens_0": {"prefix": [], "completion": []},
                "score_0": -1.0,
                "answer_1": GOOD,
                "score_1": 1.0,
            }
        ],
        CHAT,
        (1.0, -1.0),
    ),
    (
        "PKU-SafeRLHF",
        "PKU-SafeRLHF, BeaverTails-single-dimension-preference",
        [
            {
                "prompt": QUESTION,
                "response_0": BAD,
                "response_1": GOOD,
                "is_response_0_safe": True,
                "is_response_1_safe": True,
                "better_response_id": 1,
                "safer_response_id": 0,
            }
        ],
        CHAT,
        NO_SCORES,
    ),
    (
        "BeaverTails",
        "PKU-Alignment/BeaverTails",
        [{"prompt": QUESTION, "response": GOOD, "category": {"privacy_violation": False}, "is_safe": True}],
        THUMB,
        NO_SCORES,
    ),
    (
        "AlpacaFarm",
        "tatsu-lab/alpaca_farm",
        [{"instruction": QUESTION, "input": "", "output_1": BAD, "output_2": GOOD, "preference": 2}],
        CHAT,
        NO_SCORES,
    ),
    (
        "OffsetBias",
        "NCSOFT/offsetbias",
        [{"instruction": QUESTION, "output_1": GOOD, "output_2": BAD, "label": 1, "bias_type": "length"}],
        CHAT,
        NO_SCORES,
    ),
    (
        "summarize_from_feedback",
        "openai/summarize_from_feedback",
        [
            {
                "info": {
                    "id": "t",
                    "post": QUESTION,
                    "title": "Sky",
                    "subreddit": "Ask",
                    "site": None,
                    "article": None,
                },
                "summaries": [{"text": BAD, "policy": "p", "note": None}, {"text": GOOD, "policy": "q", "note": None}],
                "choice": 1,
                "worker": "w",
            }
        ],
        (f"SUBREDDIT: Ask\n\nTITLE: Sky\n\nPOST: {QUESTION}\n\nTL;DR:", GOOD, BAD),
        NO_SCORES,
    ),
    (
        "comparisons",
        "any A/B data",
        [{"prompt": QUESTION, "response_a": GOOD, "response_b": BAD, "winner": "A"}],
        TEXT,
        NO_SCORES,
    ),
    (
        "OASST trees",
        "OpenAssistant's trees",
        [
            {
                "message_tree_id": "m0",
                "tree_state": "ready_for_export",
                "prompt": nested(MESSAGES[0], nested(MESSAGES[2]), nested(MESSAGES[1])),
            }
        ],
        CHAT,
        NO_SCORES,
    ),
    ("OASST messages", "OpenAssistant/oasst1, oasst2", MESSAGES, CHAT, NO_SCORES),
    (
        "unpaired",
        "TRL unpaired",
        [{"prompt": QUESTION, "completion": GOOD, "label": True}],
        (QUESTION, GOOD, True),
        NO_SCORES,
    ),
    (
        "LLaMA-Factory KTO",
        "kto_tag",
        [{"conversations": [turn("human", QUESTION), turn("gpt", GOOD)], "kto_tag": True}],
        THUMB,
        NO_SCORES,
    ),
    (
        "LLaMA-Factory KTO",
        "alpaca",
        [{"instruction": QUESTION, "input": "", "output": GOOD, "kto_tag": True}],
        THUMB,
        NO_SCORES,
    ),
    (
        "feedback",
        "a product's log",
        [{"prompt": QUESTION, "response": GOOD, "feedback": "thumbs up"}],
        THUMB,
        NO_SCORES,
    ),
]


def outcome_of(*records: Any, **reading: Any) -> Outcome:
    """What becomes of the records, which must be one prompt's."""
    (record,) = gathered(Record(number, value=value) for number, value in enumerate(records, start=1))
    return read_record(record.value, "f", record.source_row, Reading(**reading))


def content(row: PreferenceRow) -> tuple[Any, Any, Any]:
    return (row.prompt, row.chosen, row.rejected) if row.paired else (row.prompt, row.completion, row.label)


@pytest.mark.parametrize(("form", "called", "records", "said", "scores"), PUBLISHED)
def test_a_published_row_is_read(form: str, called: str, records: list[Any], said: Any, scores: Any) -> None:
    for written in (records, json.loads(json.dumps(records))):
        outcome = outcome_of(*written)
        assert outcome.refused == []
        (row,) = outcome.rows
        assert content(row) == said
        assert (row.chosen_score, row.rejected_score) == scores
        assert outcome.form is not None
    # flat messages are known by their columns, and become the same tree
    assert outcome.form.name == ("OASST trees" if form == "OASST messages" else form)


def test_every_form_of_the_table_is_tested_and_there_are_twenty_public_ones() -> None:
    assert {form for form, *_ in PUBLISHED} == {form.name for form in FORMS}
    assert len({form.name for form in FORMS}) == len(FORMS) >= 30
    assert len(PUBLISHED) >= 40


@pytest.mark.parametrize(("form", "called", "records", "said", "scores"), PUBLISHED)
def test_a_null_column_of_any_other_form_changes_nothing(
    form: str, called: str, records: list[Any], said: Any, scores: Any
) -> None:
    columns = {name for entry in FORMS for either in (*entry.needs, *columns_of(entry.columns)) for name in either}
    nothing = dict.fromkeys(columns)
    missing = dict.fromkeys(nothing, math.nan)
    for absent in (nothing, missing):
        (row,) = outcome_of(*({**absent, **record} for record in records)).rows
        assert content(row) == said


# N-way data -------------------------------------------------------------------------------------

RANKED = {"prompt": "q", "responses": ["c", "a", "d", "b"], "scores": [2, 4, 1, 3]}


@pytest.mark.parametrize(
    ("pairing", "pairs"),
    [
        ("best_worst", ["ad"]),
        ("adjacent", ["ab", "bc", "cd"]),
        ("all", ["ab", "ac", "ad", "bc", "bd", "cd"]),
    ],
)
def test_answers_in_an_order_are_paired_as_the_recipe_says(pairing: str, pairs: list[str]) -> None:
    rows = outcome_of(RANKED, pairing=pairing).rows
    assert [f"{row.chosen}{row.rejected}" for row in rows] == pairs
    assert all((row.chosen_score or 0) > (row.rejected_score or 0) for row in rows)


def test_a_random_pair_depends_on_the_answers_and_not_on_their_place() -> None:
    drawn = outcome_of(RANKED, pairing="random").rows
    turned = {**RANKED, "responses": RANKED["responses"][::-1], "scores": RANKED["scores"][::-1]}  # type: ignore[index]
    assert [row.row_id for row in drawn] == [row.row_id for row in outcome_of(turned, pairing="random").rows]
    seen = {
        (row.chosen or "")[:1] + (row.rejected or "")[:1]  # type: ignore[operator]
        for number in range(60)
        for row in outcome_of({**RANKED, "prompt": str(number)}, pairing="random").rows
    }
    assert seen == {"ab", "ac", "ad", "bc", "bd", "cd"}


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({**RANKED, "scores": [1, 1, 1, 1]}, "tie"),
        ({**RANKED, "scores": [1, None, None, math.nan]}, "fewer than two answers that are scored or ranked"),
        ({**RANKED, "scores": [1, 2]}, "responses and scores differ in number"),
        ({"prompt": "q", "response_a": "x", "response_b": "y", "winner": "tie (bothbad)"}, "tie"),
        ({"prompt": "q", "response_a": "x", "response_b": "y", "winner": 1}, "winner is neither a, b nor tie"),
        ({"prompt": "q", "response_0": "x", "response_1": "y", "better_response_id": -1}, "tie"),
        ({"context": [u("q")], "response1": "x", "response2": "y", "overall_preference": 0}, "tie"),
        ({"question": "q", "answer_0": "x", "answer_1": "y", "score_0": 0.0, "score_1": 0.0}, "tie"),
        ({"input": "q", "chosen": "x", "rejected": "y", "status": "tie"}, "tie"),
        (
            {
                "conversation_a": [u("q"), a("x"), u("and?"), a("y")],
                "conversation_b": [u("q"), a("z"), u("and?"), a("y")],
                "winner": "model_a",
            },
            "prompts differ",
        ),
        (
            {
                "input": {"messages": [u("q")], "tools": [{"type": "function"}]},
                "preferred_output": [a("x")],
                "non_preferred_output": [a("y")],
            },
            "tools are not supported",
        ),
    ],
)
def test_what_prefers_nothing_is_refused_by_name(record: Any, reason: str) -> None:
    outcome = outcome_of(record)
    assert outcome.rows == []
    assert [refused.reason for refused in outcome.refused] == [reason]


def test_one_bad_pair_of_many_leaves_the_others() -> None:
    record = {"prompt": "q", "responses": ["a", "b", " "], "scores": [3, 2, 1]}
    outcome = outcome_of(record, pairing="all")
    assert [f"{row.chosen}{row.rejected}" for row in outcome.rows] == ["ab"]
    assert [(refused.reason, refused.value["chosen"]) for refused in outcome.refused] == [
        ("empty rejected", "a"),
        ("empty rejected", "b"),
    ]


def test_helpsteers_marks_part_a_prompt_into_turns() -> None:
    prompt = "Hello.\n<extra_id_1>Assistant\nHi!\n<extra_id_1>User\nA colour?"
    rows = outcome_of({"prompt": prompt, "response_1": "x", "response_2": "y", "preference_strength": -1}).rows
    assert [row.prompt for row in rows] == [(u("Hello."), a("Hi!"), u("A colour?"))]


def test_records_of_one_prompt_are_gathered_and_counted() -> None:
    def answer(prompt: str, text: str, score: int) -> dict[str, Any]:
        return {"prompt": prompt, "response": text, "helpfulness": score}

    records = [answer("p", "a", 1), answer("p", "b", 2), answer("q", "c", 1), {"prompt": "z"}, *MESSAGES]
    validation = Validation()
    rows = list(validation.accepted((Record(n, value=v) for n, v in enumerate(records, start=1)), "f"))
    assert [(row.source_row, row.form) for row in rows] == [(1, "chat"), (5, "chat")]
    assert validation.records == len(records)
    assert validation.forms == {"HelpSteer 2": 1, "OASST trees": 1}
    assert [(entry.source_row, entry.reason) for entry in validation.quarantined] == [
        (3, "fewer than two answers that are scored or ranked"),
        (4, "missing field chosen"),
    ]


def test_a_tree_whose_first_message_is_elsewhere_is_set_aside_whole() -> None:
    validation = Validation()
    assert not list(validation.accepted((Record(n, value=v) for n, v in enumerate(MESSAGES[1:], start=1)), "f"))
    assert validation.records == 2
    (entry,) = validation.quarantined
    assert entry.reason == "the tree's first message is not among its records"
    assert GOOD in entry.text and BAD in entry.text


@pytest.mark.real_data
@pytest.mark.parametrize(("pairing", "rows"), [("best_worst", 76), ("adjacent", 159), ("all", 299)])
def test_real_trees_give_the_pairs_that_were_counted(real_data: Path, pairing: str, rows: int) -> None:
    validation = Validation(reading=Reading(pairing=pairing))  # type: ignore[arg-type]
    nested_rows = list(validation.accepted(read_records(str(real_data / "oasst/trees.jsonl")), "trees"))
    assert validation.records == 40
    assert len(nested_rows) + sum(entry.reason.startswith("duplicate") for entry in validation.quarantined) == rows
    flat = [message for tree in read_records(str(real_data / "oasst/trees.jsonl")) for message in _flat(tree.value)]
    again = Validation(reading=Reading(pairing=pairing))  # type: ignore[arg-type]
    list(again.accepted((Record(n, value=v) for n, v in enumerate(flat, start=1)), "flat"))
    assert (again.digest, again.records) == (validation.digest, len(flat))


def _flat(tree: dict[str, Any]) -> list[dict[str, Any]]:
    """The messages of a tree in the flat table's order."""
    waiting, found = [{**tree["prompt"], "parent_id": None}], []
    while waiting:
        node = waiting.pop(0)
        waiting = [*node["replies"], *waiting]
        found.append({**node, "message_tree_id": tree["message_tree_id"], "replies": None})
    return found


# Scores -----------------------------------------------------------------------------------------


def scored(chosen: float | None, rejected: float | None) -> dict[str, Any]:
    return {
        "prompt": f"{chosen} {rejected}",
        "chosen": "c",
        "rejected": "r",
        "chosen_score": chosen,
        "rejected_score": rejected,
    }


def test_pairs_of_near_scores_are_set_aside_and_counted() -> None:
    records = [scored(5, 4), scored(5, 3), scored(5, None), scored(2, 0), scored(-1, -4)]
    for setting, reasons in (
        ({"min_score_gap": 2}, {"score gap below 2": 1, "no scores to compare": 1}),
        ({"min_score_ratio": 2}, {"score ratio below 2": 3, "no scores to compare": 1}),
        ({}, {}),
    ):
        validation = Validation(reading=Reading(**setting))  # type: ignore[arg-type]
        rows = list(validation.accepted((Record(n, value=v) for n, v in enumerate(records, start=1)), "f"))
        assert validation.reasons == reasons
        assert len(rows) == len(records) - sum(reasons.values())


def test_pairs_whose_sides_hardly_differ_are_set_aside_and_counted() -> None:
    answer = [f"w{n}" for n in range(20)]

    def pair(number: int, rejected: list[str], **more: Any) -> dict[str, Any]:
        return {"prompt": f"p{number}", "chosen": " ".join(answer), "rejected": " ".join(rejected), **more}

    records = [
        pair(1, [*answer[:19], "x"]),  # 19 of 21
        pair(2, [*answer[:18], "x", "y"]),  # 18 of 22
        pair(3, [word.upper() for word in answer]),  # all
        pair(4, [*answer, *answer]),  # 20 of 40
        pair(5, [*answer[:19], "x"], chosen_score=9, rejected_score=1),
        {"prompt": "p6", "chosen": "...", "rejected": "!"},
    ]
    for setting, wrong in (({"max_side_similarity": 0.9}, 3), ({"max_side_similarity": 0.8}, 4), ({}, 0)):
        validation = Validation(reading=Reading(**setting))  # type: ignore[arg-type]
        rows = list(validation.accepted((Record(n, value=v) for n, v in enumerate(records, start=1)), "f"))
        reasons = {f"sides more similar than {most:g}": wrong for most in setting.values()}
        assert (validation.reasons, len(rows)) == (reasons, len(records) - wrong)
    halved = Validation(reading=Reading(max_side_similarity=0.9), split_pairs=True)
    kept = list(halved.accepted((Record(n, value=v) for n, v in enumerate(records, start=1)), "f"))
    assert len(kept) == 6 and sum(halved.reasons.values()) == 3, "a pair is looked at before it is split"


def test_scores_are_in_the_shards_digest_and_not_in_the_rows() -> None:
    def digests(**fields: Any) -> tuple[str, str]:
        validation = Validation()
        list(validation.accepted([Record(1, value={"prompt": "p", "chosen": "c", "rejected": "r", **fields})], "f"))
        return validation.digest, validation.content_digest

    bare, one, other = digests(), digests(chosen_score=2, rejected_score=1), digests(chosen_score=3, rejected_score=1)
    assert bare[0] == bare[1] == one[0] == other[0]
    assert len({bare[1], one[1], other[1]}) == 3


# Columns and words ------------------------------------------------------------------------------


def test_columns_of_any_name_are_mapped() -> None:
    record = {"meta": {"question": "q"}, "good": "x", "bad": "y", "prompt": "another", "completions": [1], "votes": "3"}
    columns = {"prompt": "meta.question", "chosen": "good", "rejected": "bad"}
    (row,) = outcome_of(record, columns=columns).rows
    assert content(row) == ("q", "x", "y")
    (row,) = outcome_of(record, columns={**columns, "chosen_score": "votes", "rejected_score": "none"}).rows
    assert row.chosen_score is None
    (row,) = outcome_of({**record, "tone": "Be kind."}, columns={**columns, "system": "tone"}).rows
    assert row.prompt == ({"role": "system", "content": "Be kind."}, u("q"))
    (row,) = outcome_of(record, columns={**columns, "system": "tone"}).rows
    assert row.prompt == (u("q"),)  # a conversation in every row of the source
    outcome = outcome_of(record, columns={**columns, "chosen": "best"})
    assert [refused.reason for refused in outcome.refused] == ["missing column best"]


def test_words_of_a_label_or_a_verdict_are_mapped() -> None:
    labels = {"Helpful": True, "useless": False}
    columns = {"prompt": "asked", "completion": "said", "label": "verdict"}
    for word, label in (("helpful", True), ("USELESS ", False)):
        (row,) = outcome_of({"asked": "q", "said": "x", "verdict": word}, columns=columns, labels=labels).rows
        assert row.label is label
    compared = {"prompt": "q", "response_a": "x", "response_b": "y"}
    for given, winner in ((1, "x"), (2.0, "y"), ("2", "y")):
        (row,) = outcome_of({**compared, "winner": given}, labels={1: True, 2: False}).rows
        assert row.chosen == winner
    (row,) = outcome_of({**compared, "winner": True}, labels={True: False}).rows
    assert row.chosen == "y"


@pytest.mark.parametrize(
    ("word", "label"),
    [(1, True), (0.0, False), ("Yes", True), ("thumbs-down", False), ("Thumbs Up", True), ("-1", False), ("👍", True)],
)
def test_a_label_may_be_a_number_or_a_word(word: Any, label: bool) -> None:
    (row,) = outcome_of({"prompt": "q", "completion": "x", "label": word}).rows
    assert row.label is label


def test_roles_may_be_written_in_any_case_and_by_any_usual_name() -> None:
    for asked, answered in (("Human", "Assistant"), ("USER", "GPT"), ("prompter", "Model"), (" user ", "bot")):
        record = {
            "chosen": [turn(asked, "q"), turn(answered, "x")],
            "rejected": [turn(asked, "q"), turn(answered, "y")],
        }
        (row,) = outcome_of(record).rows
        assert content(row) == ((u("q"),), (a("x"),), (a("y"),))


def test_parts_of_text_are_one_text() -> None:
    parts = [{"type": "text", "text": "Name "}, {"type": "text", "text": "one."}]
    record = {"prompt": [{"role": "user", "content": parts}], "chosen": "x", "rejected": "y"}
    assert outcome_of(record).rows[0].prompt == (u("Name one."),)


# Refusals ---------------------------------------------------------------------------------------


def test_advice_names_the_columns_the_nearest_form_and_the_mapping() -> None:
    assert advice(["question", "response_good", "response_bad", "id"]) == (
        "its columns are question, response_good, response_bad, id; the nearest form is pairs (prompt, chosen,"
        " rejected); map them with preferences.columns: {prompt: question, chosen: response_good,"
        " rejected: response_bad}"
    )
    assert "{prompt: query, responses: candidates, scores: rewards}" in advice(["query", "candidates", "rewards"])
    assert "chosen: preferred, rejected: dispreferred}" in advice(["dispreferred", "query", "preferred"])
    assert "which lacks overall_preference" in advice(["context", "response1", "response2"])
    assert advice([]).startswith("it has no columns;")
    assert len(advice([f"column {number} {'x' * 500}" for number in range(1000)])) < 2500


def test_a_file_is_advised_once_for_its_commonest_reason() -> None:
    records = [{"question": "q", "good": "x", "bad": "y"}] * 30 + [{"prompt": "q", "chosen": "", "rejected": "y"}]
    validation = Validation()
    list(validation.accepted((Record(n, value=v) for n, v in enumerate(records, start=1)), "f"))
    told = validation.advice("f")
    assert told is not None and "{prompt: question, chosen: good, rejected: bad}" in told
    assert validation.advice("another") is None
    assert validation.advice("f", accepted=31) is None, "the form is known, and these rows have faults of their own"
    plain = {"prompt": "p", "system": "s", "chosen": "c", "rejected": "r"}
    list(validation.accepted([Record(1, value=plain)], "g"))
    assert validation.advice("g") == "preferences.columns: {system: system} reads its rows as conversations"
    (row,) = read_record(plain, "g", 1, Reading(columns={"system": "system"})).rows
    assert row.prompt == ({"role": "system", "content": "s"}, u("p"))


# The page ---------------------------------------------------------------------------------------

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "forms.md").read_text(encoding="utf-8")


def test_the_page_lists_the_forms_of_the_table_with_an_example_that_is_read() -> None:
    table = PAGE.split("|---|---|---|---|\n")[1].split("\n\n")[0].splitlines()
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table]
    written = [(form, columns.replace("`", "").replace("\\|", "|").replace(",", "")) for form, columns, *_ in cells]
    assert written == [(form.name, form.columns) for form in FORMS]
    examples = [json.loads(line) for line in PAGE.split("```json\n")[1].split("```")[0].splitlines()]
    assert len(examples) == len(FORMS)
    for form, example in zip(FORMS, examples, strict=True):
        assert all(not either.isdisjoint(example) for either in columns_of(form.columns))
        if not form.once_gathered:
            outcome = outcome_of(example)
            assert (outcome.form, len(outcome.rows), outcome.refused) == (form, 1, [])
