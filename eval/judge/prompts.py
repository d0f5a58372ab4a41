"""Judge prompts in FastChat's form, and the references some of them show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files

from alignment.errors import BadInput
from eval.judge.judgment import Question
from eval.suites.rows import Row, parse_rows

DEFAULT_PROMPTS = "prompts.jsonl"
MULTI_TURN = "-multi-turn"

Prompts = Mapping[str, "JudgePrompt"]
References = Mapping[str, tuple[str, ...]]
"""Question id to reference answers by turn."""


@dataclass(frozen=True)
class JudgePrompt:
    """One prompt: `template` is filled by `str.format` with FastChat's names (question, answer, ref_answer_1, …)."""

    name: str
    system: str
    template: str


def parse_prompts(rows: Iterable[Row], file: str, needed: Iterable[str] = ()) -> dict[str, JudgePrompt]:
    """Prompts by name; raises `BadInput` when a needed prompt is missing."""
    prompts: dict[str, JudgePrompt] = {}
    for row, record in rows:
        for field in ("name", "system_prompt", "prompt_template"):
            if not isinstance(record.get(field), str):
                raise BadInput("not a judge prompt: expected a text", file=file, row=row, field=field)
        prompts[record["name"]] = JudgePrompt(record["name"], record["system_prompt"], record["prompt_template"])
    for name in needed:
        if name not in prompts:
            raise BadInput(f"no judge prompt named '{name}'", file=file)
    return prompts


def default_prompts() -> dict[str, JudgePrompt]:
    """The prompts that come with this project."""
    data = files("eval.judge").joinpath(DEFAULT_PROMPTS).read_bytes()
    return parse_prompts(parse_rows(data, DEFAULT_PROMPTS), DEFAULT_PROMPTS)


def reference_turns(rows: Iterable[Row], file: str) -> dict[str, tuple[str, ...]]:
    """Question id to reference answers by turn, from a FastChat answer file."""
    references: dict[str, tuple[str, ...]] = {}
    for row, record in rows:
        try:
            turns = record["choices"][0]["turns"]
            references[str(record["question_id"])] = tuple(str(turn) for turn in turns)
        except (KeyError, IndexError, TypeError):
            raise BadInput("not a FastChat answer (question_id, choices, turns)", file=file, row=row) from None
    return references


def fill(question_id: str, turn: int, prompt: JudgePrompt, words: Mapping[str, str], game: int = 0) -> Question:
    """A prompt filled with these words; raises `BadInput` when it needs others."""
    try:
        user = prompt.template.format(**words)
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise BadInput(f"judge prompt '{prompt.name}' cannot be filled for question {question_id}: {error}") from error
    return Question(question_id, turn, prompt.name, prompt.system, user, game)
