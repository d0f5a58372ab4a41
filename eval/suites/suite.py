"""What a suite is made of: the form of its items, the field's own task where there is one, its metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from alignment.digest import json_digest
from alignment.recipe import DataSource
from alignment.stages import SourceFile

Output = Literal["generate_until", "multiple_choice", "loglikelihood"]
"""What a task asks of a model, in lm-eval's words: a text, or log-likelihoods of given continuations."""


@dataclass(frozen=True)
class StockTask:
    """One of lm-eval's tasks: its YAML below `lm_eval/tasks`, the split it tests on, its few-shot split.

    `num_fewshot` is its own number of examples and `own_examples` whether it brings them along. `subset` is the
    configuration of a data set on the hub that it tests on. `processed` tells that it changes its documents.
    """

    name: str
    yaml: str
    split: str
    few_shot_split: str | None = None
    output: Output = "generate_until"
    num_fewshot: int = 0
    own_examples: bool = False
    subset: str | None = None
    processed: bool = False


@dataclass(frozen=True)
class Item:
    """One item: `fields` as published, and the id that its responses and samples carry."""

    id: str
    fields: dict[str, Any]


Classify = Callable[[Item, str], tuple[dict[str, float], dict[str, Any]]]
"""Takes an item and the answer to it; gives values by metric (not every metric is about every item) and a detail, in
which `class` names what the answer was taken for."""


@dataclass(frozen=True)
class Suite:
    """A suite by name.

    `fields` are the keys an item must have and their types. An item's id is `id_field`, or its row
    index in the data file where that is None. It is scored by lm-eval's `task`, or by those of a group (`members`, by
    the subset whose items are theirs), or by a function of ours (`classify`), or else by a judge.
    Without a task its items have `turns`, what the user says, one text each; `prepare` brings a published record
    into that form. Where `distinct` names a field, only the first record with each value of it is an item.
    Values lie on `scale`, those of a metric in `scales` on its own; `main` stands for the suite, its first metric where
    none is named. `temperature_of` is what an item is answered with where a recipe gives no temperature; greedy by
    default.
    `left_out` are the task's metrics that are no means over items where more is better.
    `linearised` are metrics of a whole data set, told by item so that the mean of the values is the metric: a value may
    lie beyond the scale.
    """

    name: str
    title: str
    fields: Mapping[str, type]
    id_field: str | None
    metrics: tuple[str, ...]
    task: StockTask | None
    scale: tuple[float, float] = (0.0, 1.0)
    scales: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    main: str | None = None
    turns: int = 1
    members: Mapping[str, StockTask] = field(default_factory=dict)
    classify: Classify | None = None
    prepare: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    distinct: str | None = None
    temperature_of: Callable[[Item], float] | None = None
    left_out: tuple[str, ...] = ()
    linearised: tuple[str, ...] = ()

    @property
    def headline(self) -> str:
        return self.main or self.metrics[0]

    def scale_of(self, metric: str) -> tuple[float, float]:
        return self.scales.get(metric, self.scale)

    @property
    def needs_judge(self) -> bool:
        return self.task is None and not self.members and self.classify is None

    @property
    def output(self) -> Output:
        """What all its tasks ask of a model."""
        return next((task.output for task in (self.task, *self.members.values()) if task), "generate_until")


# One suite as a request names it: its items pinned by content, and how they are asked.


class SuiteSpec(BaseModel):
    """A suite's items and settings. Exactly one of `data`, `hub` and `embedded` says where the items come from.

    `num_fewshot` None is the lm-eval task's own number; examples come from `few_shot_data` or `few_shot_hub`.
    `chat_template` None is as in training: used where the tokenizer has one. `temperature` None is the suite's own.
    `reference_answers`, `judge_prompts` and `baseline_answers` matter to scoring alone; `for_answering` leaves
    them out, so that a new judge prompt never makes a model answer again.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    data: SourceFile | None = None
    hub: DataSource | None = None
    embedded: str | None = None
    limit: int | None = None
    max_new_tokens: int
    temperature: float | None = None
    top_p: float = 1.0
    num_fewshot: int | None = 0
    few_shot_data: SourceFile | None = None
    few_shot_hub: DataSource | None = None
    chat_template: bool | None = None
    reference_answers: SourceFile | None = None
    judge_prompts: SourceFile | None = None
    baseline_answers: SourceFile | None = None

    def for_answering(self) -> SuiteSpec:
        """The same suite without what only scoring reads."""
        return self.model_copy(update={"reference_answers": None, "judge_prompts": None, "baseline_answers": None})

    def identity(self) -> dict[str, Any]:
        """The settings as a plain value in which files stand for their content."""
        return {
            name: _plain(value) for name, value in ((field, getattr(self, field)) for field in type(self).model_fields)
        }

    def digest(self) -> str:
        """64 hex digits: two results may be compared only when these are the same."""
        return json_digest(self.identity())


def _plain(value: Any) -> Any:
    if isinstance(value, SourceFile):
        return value.identity()
    return value.model_dump(mode="json") if isinstance(value, DataSource) else value


# The category of an item, as published data name it.


def category_of(item: Mapping[str, Any]) -> str | None:
    """A name, None without one. BeaverTails marks each of its categories of harm true or false: those that are true,
    in order of the alphabet."""
    given = item.get("category")
    if isinstance(given, dict):
        return ", ".join(sorted(name for name, marked in given.items() if marked)) or None
    return str(given) if given else None
