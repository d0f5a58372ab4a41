"""lm-eval's own tasks on local items: its documents and prompts, without its data from the hub or its task index.

A task is opened from a small YAML that includes lm-eval's YAML and names local files. lm-eval's index of all tasks is
not built, which would take ten seconds. All files are in a temporary folder.
"""

from __future__ import annotations

import io
import json
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import cache
from glob import escape
from pathlib import Path
from typing import Any

import yaml

from alignment.errors import BadInput
from eval.suites.lm_eval_tasks import quiet, root_cause, seeded
from eval.suites.rows import write_records
from eval.suites.suite import Item, StockTask

FEW_SHOT_SEED = 1234
"""lm-eval's default seed for drawing few-shot examples."""

MARK = "align_item"
"""A column with the item's position, to see whether a task that processes its documents keeps all, in order."""

Message = dict[str, str]
ChatTemplate = Callable[..., str]
"""Takes messages and `add_generation_prompt`; gives the text that a model sees."""


class ItemError(RuntimeError):
    """A task failed on a document: `index` is the document's position, `__cause__` the original error."""

    def __init__(self, index: int) -> None:
        super().__init__(f"document {index} failed")
        self.index = index


@contextmanager
def open_task(
    stock: StockTask, items: Sequence[Item], few_shot: Sequence[dict[str, Any]] = (), num_fewshot: int = 0
) -> Iterator[Any]:
    """lm-eval's task over these items; the i-th document is the i-th item.

    Raises `BadInput` if the task cannot read the items, or leaves some of them out.
    """
    with tempfile.TemporaryDirectory(prefix="align-lm-eval-") as folder, quiet(), seeded():
        task_folder = Path(folder)
        write_records(task_folder / "items.jsonl", _marked(stock, items))
        if few_shot:
            write_records(task_folder / "few_shot.jsonl", few_shot)
        config = _config(stock, task_folder, bool(few_shot), num_fewshot)
        (task_folder / "task.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        try:
            task = _load(task_folder, config["task"])
        except Exception as error:  # code of another library, on data that it does not expect
            raise BadInput(f"lm-eval's {stock.name} cannot read these items: {root_cause(error)}") from error
        if stock.processed:
            docs = _processed(task.config.process_docs, task.dataset[stock.split])
            _check_order(stock, docs, len(items))
            task.config.process_docs = lambda _: docs
        yield task


def _load(folder: Path, name: str) -> Any:
    from lm_eval.tasks import TaskManager

    with redirect_stdout(io.StringIO()):  # IFEval's module prints a message about a download, even without one
        return TaskManager(include_path=str(folder), include_defaults=False).load([name])["tasks"][name]


def _config(stock: StockTask, folder: Path, few_shot: bool, num_fewshot: int) -> dict[str, Any]:
    import lm_eval

    data_files = {stock.split: escape(str(folder / "items.jsonl"))}  # which are patterns, and the folder is ours
    if few_shot:
        data_files[str(stock.few_shot_split)] = escape(str(folder / "few_shot.jsonl"))
    config: dict[str, Any] = {
        "include": str(Path(lm_eval.__file__).parent / "tasks" / stock.yaml),
        "task": f"local_{stock.name}",
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": data_files, "cache_dir": str(folder / "cache")},
        "custom_dataset": None,
        "num_fewshot": num_fewshot,
    }
    if not num_fewshot:  # without this the task would read its other splits, although it needs no example
        config |= dict.fromkeys(("training_split", "validation_split", "fewshot_split", "fewshot_config"))
        config["test_split"] = stock.split
    return config


def _marked(stock: StockTask, items: Sequence[Item]) -> Iterator[dict[str, Any]]:
    for index, item in enumerate(items):
        yield {**item.fields, MARK: index} if stock.processed else item.fields


def _processed(process: Callable[[Any], Any], docs: Any) -> Any:
    """A task's processed documents. A process that draws random numbers gets each document alone, seeded."""
    from datasets import Dataset

    # in memory, because `datasets` would reuse its cached files instead of processing again
    before = random.getstate()
    whole = process(Dataset.from_list(docs.to_list(), features=docs.features))
    if random.getstate() == before:
        return whole
    rows: list[dict[str, Any]] = []
    for doc in docs:
        with seeded():
            rows += process(Dataset.from_list([doc], features=docs.features)).to_list()
    return Dataset.from_list(rows)


def _check_order(stock: StockTask, docs: Any, items: int) -> None:
    kept = list(docs[MARK]) if MARK in docs.column_names else list(range(len(docs)))
    if kept != list(range(items)):
        lost = sorted(set(range(items)) - set(kept))
        which = f"leaves out item {lost[0]} and {len(lost) - 1} more" if lost else "changes the order of its items"
        raise BadInput(f"lm-eval's {stock.name} {which}: give it a file with exactly the items that it tests on")


@cache
def instruction_classes() -> dict[str, Any]:
    """IFEval's instructions by id, as lm-eval's scorer looks them up."""
    with quiet(), redirect_stdout(io.StringIO()):
        from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT
    return dict(INSTRUCTION_DICT)


def stop_strings(task: Any) -> tuple[str, ...]:
    """The strings at which the task ends an answer."""
    until = (task.config.generation_kwargs or {}).get("until") or ()
    return (until,) if isinstance(until, str) else tuple(until)


def plain_prompts(task: Any, num_fewshot: int) -> list[str]:
    """The prompt of every document, as lm-eval writes it for a model without a chat template."""
    return [str(context) for _, context in contexts(task, num_fewshot)]


def chat_prompts(task: Any, num_fewshot: int) -> list[list[Message]]:
    """The prompt of every document, as the messages that lm-eval gives to a chat template; examples are turns too.

    If a task begins the answer itself, this beginning is a last message of the assistant.
    """

    def as_json(messages: list[Message], add_generation_prompt: bool = True) -> str:
        return json.dumps(messages)

    return [json.loads(context) for _, context in contexts(task, num_fewshot, as_json)]


def continuations(task: Any, num_fewshot: int, template: ChatTemplate | None = None) -> list[list[Any]]:
    """lm-eval's requests for log-likelihoods, by document; `template` renders messages, None means plain text."""
    requests = []
    for index, (doc, context) in enumerate(contexts(task, num_fewshot, template)):
        made = task.construct_requests(
            doc=doc, ctx=context, metadata=(task.config.task, index, 1), apply_chat_template=template is not None
        )
        requests.append(made if isinstance(made, list) else [made])
    return requests


def contexts(task: Any, num_fewshot: int, template: ChatTemplate | None = None) -> Iterator[tuple[Any, Any]]:
    """Every document with its context: a text, or a text for each choice if the choices are part of the question.

    Raises `ItemError` for a document that the task cannot write a prompt for.
    """
    task.set_fewshot_seed(FEW_SHOT_SEED)
    for index, doc in enumerate(task.eval_docs):
        try:
            context = task.fewshot_context(
                doc,
                num_fewshot=num_fewshot,
                apply_chat_template=template is not None,
                fewshot_as_multiturn=template is not None,
                chat_template=template,
                gen_prefix=task.doc_to_prefix(doc),
            )
        except Exception as error:
            raise ItemError(index) from error
        yield doc, context


# A folder of evaluation data may contain NLTK's sentence splitter.


@contextmanager
def nltk_data_beside(data: str | Path | None) -> Iterator[None]:
    """Meanwhile NLTK also searches `nltk_data` beside the data file, and beside the file's folder.

    NLTK searches NLTK_DATA and its own places first. A URL has no such folders.
    """
    if data is None or "://" in str(data):
        yield
        return
    import nltk

    folder = Path(data).resolve().parent
    beside = [str(place) for place in (folder / "nltk_data", folder.parent / "nltk_data") if place.is_dir()]
    nltk.data.path.extend(beside)
    try:
        yield
    finally:
        for place in beside:
            nltk.data.path.remove(place)
