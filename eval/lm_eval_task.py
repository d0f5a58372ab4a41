"""lm-eval's own tasks on local items: its prompts and its scorers, without its hub data or its task index.

A task is opened from a small YAML that includes the stock one and names local files, with the default
task index left out (it takes ten seconds to build). All files live in a temporary folder.
"""

from __future__ import annotations

import io
import json
import logging
import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from eval.jsonl import write_records
from eval.suites.suite import Item, StockTask

FEW_SHOT_SEED = 1234
"""lm-eval's own default for drawing few-shot examples."""

Message = dict[str, str]


class ScorerError(RuntimeError):
    """A task's own scorer failed on a document: `index` is its position, the cause what was raised."""

    def __init__(self, index: int) -> None:
        super().__init__(f"scoring document {index} failed")
        self.index = index


@contextmanager
def open_task(
    stock: StockTask, items: Sequence[Item], few_shot: Sequence[dict[str, Any]] = (), num_fewshot: int = 0
) -> Iterator[Any]:
    """lm-eval's task over these items, whose i-th document is the i-th item."""
    with tempfile.TemporaryDirectory(prefix="align-lm-eval-") as folder, quiet():
        import lm_eval
        from lm_eval.tasks import TaskManager

        here = Path(folder)
        data_files = {stock.split: str(here / "items.jsonl")}
        write_records(here / "items.jsonl", (item.fields for item in items))
        if num_fewshot:
            write_records(here / "few_shot.jsonl", few_shot)
            data_files[str(stock.few_shot_split)] = str(here / "few_shot.jsonl")
        name = f"local_{stock.name}"
        config = {
            "include": str(Path(lm_eval.__file__).parent / "tasks" / stock.yaml),
            "task": name,
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": data_files, "cache_dir": str(here / "cache")},
            "num_fewshot": num_fewshot,
        }
        if not num_fewshot:  # the stock task would read its training split even when no example is asked for
            config |= {"training_split": None, "fewshot_split": None}
        (here / "task.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        with redirect_stdout(io.StringIO()):  # IFEval's module prints of a download that need not have happened
            task = TaskManager(include_path=str(here), include_defaults=False).load([name])["tasks"][name]
        yield task


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
    task.set_fewshot_seed(FEW_SHOT_SEED)
    return [str(task.fewshot_context(doc, num_fewshot=num_fewshot)) for doc in task.eval_docs]


def chat_prompts(task: Any, num_fewshot: int) -> list[list[Message]]:
    """Every document's prompt as the messages lm-eval gives to a chat template; examples are turns of their own."""

    def as_json(messages: list[Message], add_generation_prompt: bool = True) -> str:
        return json.dumps(messages)

    task.set_fewshot_seed(FEW_SHOT_SEED)
    return [
        json.loads(
            task.fewshot_context(
                doc,
                num_fewshot=num_fewshot,
                apply_chat_template=True,
                fewshot_as_multiturn=True,
                chat_template=as_json,
            )
        )
        for doc in task.eval_docs
    ]


def replay(task: Any, responses: Sequence[str]) -> list[dict[str, Any]]:
    """Scores stored responses, the i-th to the i-th document, with the task's own filters and metrics.

    Returns per document a metric's name (with its filter, where the task has more than one) to its value:
    a number or truth value, or a list of them for metrics counted per instruction. Under
    `extracted,<filter>` stands what a filter took from the response. Repeats exactly: what is random in
    a scorer is seeded by the document alone. Raises `ScorerError` when the scorer fails on a document.
    """
    docs = list(task.eval_docs)
    name = task.config.task
    instances = []
    for index, (doc, response) in enumerate(zip(docs, responses, strict=True)):
        instance = task.construct_requests(doc=doc, ctx="", metadata=(name, index, 1))
        instance.resps = [response]
        instances.append(instance)
    task._instances = instances
    task.apply_filters()
    scores = []
    for index, (doc, instance) in enumerate(zip(docs, instances, strict=True)):
        try:
            scores.append(_score(task, doc, instance))
        except Exception as error:
            raise ScorerError(index) from error
    return scores


def _score(task: Any, doc: dict[str, Any], instance: Any) -> dict[str, Any]:
    scores: dict[str, Any] = {}
    for filter_name, filtered in instance.filtered_resps.items():
        with seeded():
            metrics = task.process_results(doc, [filtered])
        if filter_name == "none":
            scores |= metrics
        else:
            scores |= {f"{metric},{filter_name}": value for metric, value in metrics.items()}
            scores[f"extracted,{filter_name}"] = str(filtered)
    return scores


@contextmanager
def seeded() -> Iterator[None]:
    """IFEval draws a random letter for one item and detects languages with a sampler; both are pinned here."""
    from langdetect import DetectorFactory

    state, seed = random.getstate(), DetectorFactory.seed
    random.seed(0)
    DetectorFactory.seed = 0
    try:
        yield
    finally:
        random.setstate(state)
        DetectorFactory.seed = seed


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, no chatter, and no download: IFEval's module fetches sentence data when it is imported."""
    import datasets
    import nltk

    logger = logging.getLogger("lm_eval")
    level, download, bars = logger.level, nltk.download, not datasets.are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    nltk.download = lambda *_, **__: False
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        nltk.download = download
        if bars:
            datasets.enable_progress_bars()
