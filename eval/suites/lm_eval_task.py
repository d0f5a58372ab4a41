"""lm-eval's own tasks on local items: its documents and its prompts, without its hub data or its task index.

A task is opened from a small YAML that includes the stock one and names local files, with the default
task index left out (it takes ten seconds to build). All files live in a temporary folder.
"""

from __future__ import annotations

import io
import json
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from alignment.errors import BadInput
from eval.suites.lm_eval_tasks import quiet, root_cause, seeded
from eval.suites.rows import write_records
from eval.suites.suite import Item, StockTask

FEW_SHOT_SEED = 1234
"""lm-eval's own default for drawing few-shot examples."""

MARK = "align_item"
"""A column that shows whether a task that processes its documents keeps them all, in order."""

Message = dict[str, str]
ChatTemplate = Callable[..., str]
"""Takes messages and `add_generation_prompt`; gives the text that a model sees."""


class ItemError(RuntimeError):
    """A task stumbled over one of its documents: `index` is its position, the cause what was raised."""

    def __init__(self, index: int) -> None:
        super().__init__(f"document {index} failed")
        self.index = index


@contextmanager
def open_task(
    stock: StockTask, items: Sequence[Item], few_shot: Sequence[dict[str, Any]] = (), num_fewshot: int = 0
) -> Iterator[Any]:
    """lm-eval's task over these items, whose i-th document is the i-th item.

    Raises `BadInput` when the task cannot read the items, or leaves some out.
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
        except Exception as error:  # another library's code, on data of another form than it expects
            raise BadInput(f"lm-eval's {stock.name} cannot read these items: {root_cause(error)}") from error
        if stock.processed:
            docs = _processed(task.config.process_docs, task.dataset[stock.split])
            _check_order(stock, docs, len(items))
            task.config.process_docs = lambda _: docs
        yield task


def _load(folder: Path, name: str) -> Any:
    from lm_eval.tasks import TaskManager

    with redirect_stdout(io.StringIO()):  # IFEval's module prints of a download that need not have happened
        return TaskManager(include_path=str(folder), include_defaults=False).load([name])["tasks"][name]


def _config(stock: StockTask, folder: Path, few_shot: bool, num_fewshot: int) -> dict[str, Any]:
    import lm_eval

    data_files = {stock.split: str(folder / "items.jsonl")}
    if few_shot:
        data_files[str(stock.few_shot_split)] = str(folder / "few_shot.jsonl")
    config: dict[str, Any] = {
        "include": str(Path(lm_eval.__file__).parent / "tasks" / stock.yaml),
        "task": f"local_{stock.name}",
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": data_files, "cache_dir": str(folder / "cache")},
        "custom_dataset": None,
        "num_fewshot": num_fewshot,
    }
    if not num_fewshot:  # the stock task would read its other splits even when no example is asked for
        config |= dict.fromkeys(("training_split", "validation_split", "fewshot_split", "fewshot_config"))
        config["test_split"] = stock.split
    return config


def _marked(stock: StockTask, items: Sequence[Item]) -> Iterator[dict[str, Any]]:
    for index, item in enumerate(items):
        yield {**item.fields, MARK: index} if stock.processed else item.fields


def _processed(process: Callable[[Any], Any], docs: Any) -> Any:
    """A task's documents as it processes them; where that draws at random, each by itself and seeded."""
    from datasets import Dataset

    # in memory: what datasets keeps in files it would not process again
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
        raise BadInput(f"lm-eval's {stock.name} {which}: give it a file of those that it tests on")


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
    """Every document's prompt as lm-eval writes it for a model without a chat template."""
    return [str(context) for _, context in contexts(task, num_fewshot)]


def chat_prompts(task: Any, num_fewshot: int) -> list[list[Message]]:
    """Every document's prompt as the messages lm-eval gives to a chat template; examples are turns of their own.

    Where a task opens the answer itself, that opening is a last message of the assistant's.
    """

    def as_json(messages: list[Message], add_generation_prompt: bool = True) -> str:
        return json.dumps(messages)

    return [json.loads(context) for _, context in contexts(task, num_fewshot, as_json)]


def continuations(task: Any, num_fewshot: int, template: ChatTemplate | None = None) -> list[list[Any]]:
    """Per document lm-eval's requests for log-likelihoods; `template` renders messages, None for plain text."""
    requests = []
    for index, (doc, context) in enumerate(contexts(task, num_fewshot, template)):
        made = task.construct_requests(
            doc=doc, ctx=context, metadata=(task.config.task, index, 1), apply_chat_template=template is not None
        )
        requests.append(made if isinstance(made, list) else [made])
    return requests


def contexts(task: Any, num_fewshot: int, template: ChatTemplate | None = None) -> Iterator[tuple[Any, Any]]:
    """Every document with its context: a text, or one for each choice where the choices stand in the question.

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


# NLTK's data beside a suite's data file: a folder of evaluation data can bring its own sentence splitter.


@contextmanager
def nltk_data_beside(data: str | Path | None) -> Iterator[None]:
    """Meanwhile NLTK also looks in `nltk_data` next to the data file, and next to the folder it lies in.

    What NLTK_DATA and NLTK's own places hold comes first. URLs have no such neighbours.
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
