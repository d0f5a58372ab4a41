"""`align ab export` and `align ab import`: the answers of two models as a ballot for people, and what the votes say."""

from __future__ import annotations

import os
import secrets
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from alignment.errors import BadInput, counted, did_you_mean
from alignment.store import Artifact, Store
from alignment_dags.registry.compare import Side, side_of
from alignment_dags.registry.serve import find, generator_of
from eval.answers.files import ITEMS_FILE, RESPONSES_FILE, Response, read_responses
from eval.suites.rows import check_text, read_records, read_rows
from eval.votes import Question, blind, read_key, read_votes, result_of, write_ballot
from resources.home import ensure_home
from resources.store import ArtifactStore

Say = Callable[[str], None]
SFT = "@sft"
"""Behind a recipe's name: its SFT baseline in place of its policy."""


def export_ballot(
    a: str,
    b: str,
    items: str,
    out: Path,
    key: Path | None,
    seed: int | None,
    limit: int | None,
    max_new_tokens: int,
    precision: str,
    say: Say,
) -> dict[str, Any]:
    """Writes the ballot into a new folder, and its key beside it; returns `ballot`, `pairs`, `identical`, `left_out`,
    `folder`, `page`, `votes` and `key`.

    `items` is a suite that both models have answered, whose stored answers are taken, or a file of prompts, which
    models answer now, greedily. Raises `BadInput` for models, items and folders that cannot be used.
    """
    if key is None:
        key = out.with_name(f"{out.name}.key.json")
    for path, field in ((out, "--out"), (key, "--key")):
        if path.exists() or path.is_symlink():
            raise BadInput("is there already: name another", file=str(path), field=field)
    if out.resolve() in key.resolve().parents:
        raise BadInput("lies in the folder that voters get", file=str(key), field="--key")
    if Path(items).is_file() or Path(items).suffix:
        questions = read_questions(Path(items))
        known = [_answers_to(side, questions, max_new_tokens, precision, say) for side in (a, b)]
        label = Path(items).name
    else:
        questions, known, label = *_stored(a, b, items), items
    drawn = secrets.randbelow(1 << 32) if seed is None else seed
    made, page = blind(questions, known[0], known[1], (a, b), label, drawn, limit)
    arriving = out.with_name(f".{out.name}-{uuid.uuid4().hex[:8]}")
    try:
        arriving.mkdir(parents=True)
        write_ballot(arriving, made, page)
        key.parent.mkdir(parents=True, exist_ok=True)
        key.write_text(made.model_dump_json(indent=1) + "\n", encoding="utf-8")
        arriving.rename(out)
    except OSError as error:
        raise BadInput(f"cannot be written: {error.strerror or error}", file=str(out), field="--out") from error
    finally:
        shutil.rmtree(arriving, ignore_errors=True)
    return {
        "ballot": made.ballot,
        "pairs": len(made.pairs),
        "identical": len(made.identical),
        "left_out": made.left_out,
        "seed": drawn,
        "folder": str(out),
        "key": str(key),
    }


def read_questions(path: Path) -> list[Question]:
    """The questions in a file, each with `prompt`, `question` or `turns`, and an id (its row index from 0 where none).

    Raises `BadInput` that names the row of what is no question, and of a repeated id.
    """
    questions: dict[str, Question] = {}
    for place, (row, record) in enumerate(read_rows(path)):
        name = str(next((record[field] for field in ("id", "question_id", "key") if field in record), place))
        turns = record.get("turns", [record.get("prompt", record.get("question"))])
        if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) and turn for turn in turns):
            problem = "expected a prompt (text), or turns (a list of texts)"
            raise BadInput(problem, file=str(path), row=row, field="turns" if "turns" in record else "prompt")
        check_text({"turns": turns, "id": name}, str(path), row)
        if name in questions:
            raise BadInput(f"id {name} appears twice", file=str(path), row=row, field="id")
        questions[name] = Question(id=name, turns=tuple(turns))
    if not questions:
        raise BadInput("no prompts", file=str(path))
    return list(questions.values())


def _answers_to(
    side: str, questions: Sequence[Question], max_new_tokens: int, precision: str, say: Say
) -> dict[str, tuple[str, ...]]:
    """A side's answers: stored in a file of responses, or given now by a checkpoint."""
    if Path(side).is_file() or side.endswith((".jsonl", ".json")):
        return _whole(read_responses(side))
    generator = generator_of(find(side, say), precision)
    said: dict[str, tuple[str, ...]] = {question.id: () for question in questions}
    failed: set[str] = set()
    for turn in range(max(len(question.turns) for question in questions)):
        asked = [one for one in questions if turn < len(one.turns) and one.id not in failed]
        prompts = [_prompt(one.turns[: turn + 1], said[one.id], generator.is_chat) for one in asked]
        say(f"{side}: {counted(len(asked), 'answer')}, turn {turn + 1}")
        for question, answer in zip(asked, generator.answer(prompts, max_new_tokens), strict=True):
            if answer.failed is None:
                said[question.id] += (answer.text.strip(),)
            else:
                failed.add(question.id)
    return {name: turns for name, turns in said.items() if name not in failed}


def _prompt(asked: Sequence[str], said: Sequence[str], chat: bool) -> Any:
    if not chat:
        return "\n\n".join(asked)  # as evaluations ask a model without a chat template
    messages = []
    for place, question in enumerate(asked):
        messages.append({"role": "user", "content": question})
        if place < len(said):
            messages.append({"role": "assistant", "content": said[place]})
    return messages


def _whole(responses: Sequence[Response]) -> dict[str, tuple[str, ...]]:
    return {one.id: one.turns for one in responses if one.failed is None and one.turns}


def _stored(a: str, b: str, suite: str) -> tuple[list[Question], list[dict[str, tuple[str, ...]]]]:
    """The questions of a suite and the stored answers of two models to it."""
    ensure_home()
    store = ArtifactStore().open()
    folders = [_responses(store, side, suite) for side in (a, b)]
    if len({tuple(sorted(_items(folder))) for folder in folders}) != 1:
        raise BadInput(f"{a} and {b} were asked different items of {suite}", field="--items")
    items = _items(folders[0])
    questions = [
        Question(id=name, turns=tuple(map(str, turns)))
        for name, item in items.items()
        if (turns := item.get("turns") or [item.get("prompt", item.get("question"))])[0]
    ]
    if not questions:
        raise BadInput(f"the items of {suite} have no prompt to show", field="--items")
    return questions, [_whole(read_responses(folder / RESPONSES_FILE)) for folder in folders]


def _items(folder: Path) -> dict[str, Mapping[str, Any]]:
    return {str(record["id"]): record["item"] for record in read_records(folder / ITEMS_FILE)}


def _responses(store: Store, name: str, suite: str) -> Path:
    scores = _scores(store, name)
    if suite not in scores:
        known = ", ".join(sorted(scores)) or "none"
        problem = f"{name} has no answers to a suite '{suite}'{did_you_mean(suite, scores)} (it has {known}), and there"
        raise BadInput(f"{problem} is no file of this name", field="--items")
    folder = store.fetch(store.commit_of(scores[suite]).inputs["responses"]) / suite
    return folder


def _scores(store: Store, name: str) -> dict[str, Artifact]:
    recipe = name.removesuffix(SFT)
    if recipe != name:
        found = {suite: ref.artifact for suite, ref in store.read_refs(recipe, "sft_evals").items()}
        if not found:
            raise BadInput(f"recipe {recipe} has no answers of its SFT baseline", file=name)
        return found
    side: Side = side_of(store, name)
    if side.file is not None:
        raise BadInput("a file of answers goes with --items FILE, the prompts that were asked", file=name)
    return side.scores


def show_exported(result: dict[str, Any]) -> None:
    """Prints where the ballot is and what comes next."""
    print(
        f"{counted(result['pairs'], 'pair')} to vote on: {result['folder']}{os.sep}vote.html"
        " (or fill in votes.csv beside it)"
    )
    if result["identical"]:
        print(f"{counted(result['identical'], 'more has', 'more have')} the same answer of both: a tie each")
    if result["left_out"]:
        print(f"{counted(result['left_out'], 'is', 'are')} left out: one of the two has no answer")
    print(f"keep the key from voters: {result['key']}")
    print(f"then: align ab import VOTES.csv --key {result['key']}")


def import_votes(files: Sequence[Path], key: Path) -> dict[str, Any]:
    """What the votes in the files say (`eval.votes.result_of`)."""
    known = read_key(key)
    return result_of(known, [vote for file in files for vote in read_votes(file, known)])


def show_result(result: dict[str, Any]) -> None:
    """Prints the win rate and what it rests on."""
    ends = result["ci95"]
    interval = "no interval" if ends is None else f"95 % interval {100 * ends[0]:.1f} to {100 * ends[1]:.1f}"
    words = {"b": f"people prefer {result['b']}", "a": f"people prefer {result['a']}", "undecided": "undecided"}
    print(f"{result['b']} wins {100 * result['win_rate']:.1f} % against {result['a']} ({interval}): ", end="")
    print(words[result["verdict"]])
    print(
        f"{counted(result['votes'], 'vote')} of {result['voters']} on {result['pairs_voted']} of"
        f" {counted(result['pairs'], 'pair')}:"
        f" {result['wins']} won, {result['losses']} lost, {result['ties']} tied;"
        f" {counted(result['identical'], 'with equal answers counts as a tie', 'with equal answers count as ties')}"
    )
    if result["agreement"] is not None:
        print(f"two votes on one pair agree in {100 * result['agreement']:.0f} % of cases")
