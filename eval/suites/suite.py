"""A suite: the form of its items, lm-eval's task if it has one, and its metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict

from alignment.digest import json_digest
from alignment.recipe.data import DataSource, Keyed
from alignment.stages.stage import SourceFile

Output = Literal["generate_until", "multiple_choice", "loglikelihood"]
"""The output of a model that a task scores, in lm-eval's words: a text, or log-likelihoods of continuations."""


@dataclass(frozen=True)
class StockTask:
    """A task of lm-eval: its YAML below `lm_eval/tasks`, or an absolute path; the split of its items, and its few-shot
    split.

    `num_fewshot` is the task's own number of examples, and `own_examples` says whether the task contains them. `subset`
    is the configuration of its data set on the hub. `processed` says whether the task changes its documents.
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
    """An item: its `fields` as published, and the id of its responses and samples."""

    id: str
    fields: dict[str, Any]


Classify = Callable[[Item, str], tuple[dict[str, float], dict[str, Any]]]
"""A classifier of answers: takes an item and its answer, and returns values by metric, and a detail with the `class` of
the answer. A metric may have values for some of the items only."""

RankedValue = tuple[str, Item, float, dict[str, Any]]
"""A metric, an item, the item's value, and the detail of its sample."""


@dataclass(frozen=True)
class Suite:
    """A suite by name.

    Items: `fields` are the keys that an item must have, with their types. An item's id is its `id_field`; if that is
    None, its row index in the data file, from 0. Items of a suite without a task have `turns`, the texts of the user;
    `prepare` changes a published record into that form. If `distinct` names a field, records that repeat its value are
    left out.

    Scoring: by lm-eval's `task`, or by the tasks of a group (`members`, by subset), or by a classifier (`classify`,
    whose version is `classifier`, followed by that of the package behind it, `checkers`); a suite without any of them
    needs a judge. A suite with a classifier may be judged instead. A suite of `choices` (an item's prompt and its
    completions) is scored by the scores of all completions of all items (`rank`). `instructions` are the checkers that
    items may name, by id; None are lm-eval's. `left_out` are the task's metrics that cannot be compared, because they
    are not means over items where more is better.

    Metrics: values are on `scale`, unless the metric has a scale in `scales`. `main` is the main metric; by default the
    first. The values of `linearised` metrics are the parts of a metric of the whole data set: their mean is the metric,
    and a value may lie outside the scale.

    Answering: `temperature_of` gives an item's temperature if the recipe gives none; by default answers are greedy.
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
    classifier: str = ""
    checkers: Callable[[], str] | None = None
    choices: Callable[[Item], tuple[str, tuple[str, ...]]] | None = None
    rank: Callable[[Sequence[tuple[Item, Sequence[float]]]], list[RankedValue]] | None = None
    instructions: Callable[[], Mapping[str, Any]] | None = None
    prepare: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    distinct: str | None = None
    temperature_of: Callable[[Item], float] | None = None
    left_out: tuple[str, ...] = ()
    linearised: tuple[str, ...] = ()

    @property
    def headline(self) -> str:
        """The main metric."""
        return self.main or self.metrics[0]

    def scale_of(self, metric: str) -> tuple[float, float]:
        """Lowest and highest value of a metric."""
        return self.scales.get(metric, self.scale)

    @property
    def needs_judge(self) -> bool:
        """Whether only a judge can score the answers."""
        return self.task is None and not self.members and self.classify is None and self.rank is None

    def classifier_version(self) -> str:
        """What names the classifier in settings and keys; empty for a suite without one."""
        return f"{self.classifier} ({self.checkers()})" if self.checkers else self.classifier

    @property
    def output(self) -> Output:
        """The output of a model that all its tasks score."""
        if self.choices is not None:
            return "loglikelihood"
        return next((task.output for task in (self.task, *self.members.values()) if task), "generate_until")


# A suite in a request: its items, pinned by content, and the settings of asking them.


class SuiteSpec(Keyed):
    """A suite's items and settings. Exactly one of `data`, `hub` and `embedded` says where the items come from.

    `num_fewshot` None is the number of lm-eval's task; examples come from `few_shot_data` or `few_shot_hub`.
    `sample_seed` draws the items that `limit` leaves; None is the seed of the request.
    `chat_template` None uses the template if the tokenizer has one, as training does. `temperature` None is the suite's
    own. Only scoring uses `reference_answers`, `judge_prompts`, `baseline_answers` and `scored_by`; `for_answering`
    leaves them out, so a new judge prompt does not make a model answer again. `tasks` are the pinned files of a folder
    of own lm-eval tasks (`eval.suites.own_tasks`); without them `name` is a suite of ours or a task of lm-eval.
    """

    absent_by_default: ClassVar[frozenset[str]] = frozenset({"scored_by", "tasks", "sample_seed"})

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
    scored_by: Literal["rules", "judge"] = "rules"
    tasks: tuple[SourceFile, ...] = ()
    sample_seed: int | None = None

    def for_answering(self) -> SuiteSpec:
        """The same suite without the files that only scoring uses."""
        files = dict.fromkeys(("reference_answers", "judge_prompts", "baseline_answers"))
        return self.model_copy(update={**files, "scored_by": "rules"})

    def judged(self, suite: Suite) -> bool:
        """Whether a judge scores the answers: because nothing else can, or because the recipe says so."""
        return suite.needs_judge or self.scored_by == "judge"

    def identity(self) -> dict[str, Any]:
        """The settings as plain data, with each file replaced by what identifies its content."""
        fields = [name for name in type(self).model_fields if name not in self.absent()]
        return {name: _plain(getattr(self, name)) for name in fields}

    def digest(self) -> str:
        """A digest (64 hex digits). Two results may be compared only if their digests are equal."""
        return json_digest(self.identity())


def _plain(value: Any) -> Any:
    if isinstance(value, SourceFile):
        return value.identity()
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return value.model_dump(mode="json") if isinstance(value, DataSource) else value


# The category of an item in published data.


def category_of(item: Mapping[str, Any]) -> str | None:
    """The category's name, or None. BeaverTails marks each category of harm true or false: the names of the true ones,
    in alphabetical order."""
    given = item.get("category")
    if isinstance(given, dict):
        return ", ".join(sorted(name for name, marked in given.items() if marked)) or None
    return str(given) if given else None
