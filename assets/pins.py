"""What a recipe names outside of it, pinned by content: the suites' items, and the prompts that are sampled to."""

from __future__ import annotations

from collections.abc import Iterator

from alignment.data.files import pin_file, pin_files
from alignment.data.hub import pin_hub
from alignment.data.sources import PromptSource, SuiteItems
from alignment.errors import BadInput, named_in
from alignment.recipe.data import DataSource
from alignment.recipe.evaluation import Suite, section_of
from alignment.recipe.generate import Prompts
from alignment.stages.stage import SourceFile
from eval.suites import SuiteSpec, pin_tasks, suite_named


def suite_spec(name: str, suite: Suite) -> SuiteSpec:
    """A recipe's suite with its files pinned by content."""
    section = section_of(name, suite)

    def pinned(field: str) -> SourceFile | None:
        path = getattr(suite, field, None)
        with named_in(f"{section}.{field}"):
            return pin_file(path) if path else None

    with named_in(f"{section}.include_path"):
        tasks = pin_tasks(folder) if (folder := getattr(suite, "include_path", None)) else ()

    return SuiteSpec(
        name=name,
        data=pinned("data"),
        hub=hub_source(suite, "split"),
        embedded=suite.embedded,
        limit=suite.limit,
        max_new_tokens=suite.max_new_tokens,
        temperature=suite.temperature,
        top_p=suite.top_p,
        num_fewshot=getattr(suite, "num_fewshot", 0),
        few_shot_data=pinned("few_shot_data"),
        few_shot_hub=hub_source(suite, "few_shot_split"),
        chat_template=getattr(suite, "chat_template", None),
        reference_answers=pinned("reference_answers"),
        judge_prompts=pinned("judge_prompts"),
        baseline_answers=pinned("baseline_answers"),
        scored_by=getattr(suite, "scored_by", "rules"),
        tasks=tasks,
        sample_seed=suite.sample_seed,
    )


def hub_source(suite: Suite, split: str) -> DataSource | None:
    """The split on the hub that a setting of the suite names, pinned to a commit; None for a suite from files."""
    if suite.hub is None or (named := getattr(suite, split, None)) is None:
        return None
    return pin_hub(DataSource(hub=suite.hub, revision=suite.revision, config=suite.config, split=named))


def suite_items(name: str, suite: Suite, seed: int) -> SuiteItems:
    """Where all of a suite's items are, also those that a limit leaves unasked."""
    spec = suite_spec(name, suite)
    if spec.hub is None:
        return SuiteItems(file=spec.data, embedded=spec.embedded, seed=seed if spec.embedded else 0)
    asked = suite_named(name, spec.tasks)
    subsets = [asked.task.subset] if asked.task else [task.subset for task in asked.members.values()]
    sources = (spec.hub.model_copy(update={"config": spec.hub.config or subset}) for subset in subsets or [None])
    return SuiteItems(hub=tuple(dict.fromkeys(sources)))


def prompt_sources(prompts: Prompts, seed: int, field: str = "prompts") -> Iterator[PromptSource]:
    """The sources of prompts as they are now, pinned by content; `field` is the recipe's that names them.

    Raises `BadInput` where there is none.
    """
    if prompts.embedded is not None:
        yield from (PromptSource(embedded=prompts.embedded, part=part, seed=seed) for part in range(prompts.parts))
    elif prompts.hub is not None:
        named = DataSource(hub=prompts.hub, revision=prompts.revision, config=prompts.config, split=prompts.split)
        yield PromptSource(hub=pin_hub(named))
    else:
        with named_in(f"{field}.files"):
            files = pin_files(prompts.files or [], "preferences")
        if not files:
            raise BadInput("names no file", field=f"{field}.files")
        yield from (PromptSource(file=file) for file in files)
