"""Judge prompts in FastChat's form, and how an answer is put before a judge."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files

from alignment.errors import BadInput
from eval.jsonl import Row, parse_rows
from eval.response_files import Response
from eval.suites.suite import Item

DEFAULT_PROMPTS = "prompts.jsonl"
SINGLE, SINGLE_REFERENCE = "single-v1", "single-math-v1"
NEEDS_REFERENCE = frozenset({"math", "reasoning", "coding"})
MULTI_TURN = "-multi-turn"


@dataclass(frozen=True)
class JudgePrompt:
    """One prompt: `template` is filled by `str.format` with FastChat's names (question, answer, ref_answer_1, …)."""

    name: str
    system: str
    template: str


@dataclass(frozen=True)
class Question:
    """What a judge is asked about one turn of one answer."""

    question_id: str
    turn: int
    prompt_name: str
    system: str
    user: str


def parse_prompts(rows: Iterable[Row], file: str) -> dict[str, JudgePrompt]:
    """Prompts by name; raises `BadInput` when one that single-answer grading needs is not among them."""
    prompts: dict[str, JudgePrompt] = {}
    for row, record in rows:
        for field in ("name", "system_prompt", "prompt_template"):
            if not isinstance(record.get(field), str):
                raise BadInput("not a judge prompt: expected a text", file=file, row=row, field=field)
        prompts[record["name"]] = JudgePrompt(record["name"], record["system_prompt"], record["prompt_template"])
    for name in (SINGLE, SINGLE_REFERENCE):
        for needed in (name, name + MULTI_TURN):
            if needed not in prompts:
                raise BadInput(f"no judge prompt named '{needed}'", file=file)
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


def questions(
    item: Item, response: Response, prompts: Mapping[str, JudgePrompt], references: Mapping[str, tuple[str, ...]]
) -> list[Question]:
    """One question per turn. Maths, reasoning and coding are judged against a reference where there is one."""
    reference = references.get(item.id) if item.fields["category"] in NEEDS_REFERENCE else None
    base = SINGLE if reference is None else SINGLE_REFERENCE
    asked, answers = item.fields["turns"], response.turns
    words = {"question": asked[0], "answer": answers[0]}
    for turn in range(len(asked)):
        words |= {f"question_{turn + 1}": asked[turn], f"answer_{turn + 1}": answers[turn]}
        if reference is not None and turn < len(reference):
            words[f"ref_answer_{turn + 1}"] = reference[turn]
    return [
        _fill(item.id, turn, prompts[base if turn == 1 else base + MULTI_TURN], words)
        for turn in range(1, len(asked) + 1)
    ]


def _fill(question_id: str, turn: int, prompt: JudgePrompt, words: Mapping[str, str]) -> Question:
    try:
        user = prompt.template.format(**words)
    except (KeyError, IndexError, ValueError) as error:
        raise BadInput(f"judge prompt '{prompt.name}' cannot be filled for question {question_id}: {error}") from error
    return Question(question_id, turn, prompt.name, prompt.system, user)


def messages(question: Question) -> list[dict[str, str]]:
    """The chat messages that put a question to a judge."""
    system = [{"role": "system", "content": question.system}] if question.system.strip() else []
    return [*system, {"role": "user", "content": question.user}]
