"""`align judge succeed`: the stored judgments of a recipe or of files, and the settings of the judge that follows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignment.errors import BadInput
from alignment.recipe import Judge, Recipe, load_recipe
from alignment.store import Artifact, Store
from assets.building.upstream import Upstream
from assets.champion import champion_for
from eval.commands import NOT_A_NAME, judge_settings
from eval.gate.succession import Side
from eval.judge.files import read_judgments
from eval.stages.scores import JUDGMENTS_FILE, PAIR_JUDGMENTS_FILE
from eval.succession import sides_of, succeed
from resources.home import ensure_home
from resources.store import ArtifactStore

PAIRS = (("sft", "policy"), ("champion", "policy"))
"""The comparisons that a gate makes."""
OF_A_MODEL = ("retires", "snapshot", "price", "budget_usd", "budget_tokens")
"""Settings of a recipe's judge that hold for its own model only."""


@dataclass(frozen=True)
class Succession:
    """What `align judge succeed` was asked. `given` are settings of the new judge; None takes the recipe's."""

    old: str
    new: str
    recipe: Path | None
    judgments: tuple[Path, ...]
    suite: str | None = None
    prompts: Path | None = None
    out: Path | None = None
    questions: int = 80
    repeats: int = 0
    noise: bool = False
    given: Mapping[str, Any] = field(default_factory=dict)

    def judge(self) -> Judge:
        """The new judge; raises `BadInput` for settings that are none."""
        known = None if self.recipe is None else load_recipe(self.recipe).judge
        settings: dict[str, Any] = {}
        if known is not None and known.kind == "openai":
            settings = known.model_dump(mode="json", exclude={"kind", "model"})
            if known.model != self.new:
                settings = {name: value for name, value in settings.items() if name not in OF_A_MODEL}
        settings |= {name: value for name, value in self.given.items() if value is not None}
        if settings.get("temperature") == "none":
            settings["temperature"] = None
        price = settings.pop("price", None) or {"input_usd": None, "output_usd": None}
        return judge_settings(price, model=self.new, **settings)


def succession(wish: Succession) -> dict[str, Any]:
    """The values of `eval.succession.succeed`; raises `BadInput` without stored judgments of the old judge."""
    if (wish.recipe is None) == (not wish.judgments):
        raise BadInput("give either --recipe or --judgments", field="--recipe")
    out = wish.out or Path(f"succession-{NOT_A_NAME.sub('_', wish.old)}-{NOT_A_NAME.sub('_', wish.new)}.jsonl")
    settings: dict[str, Any] = {"limit": wish.questions, "repeats": wish.repeats, "widen": wish.noise}
    if wish.recipe is None:
        suite = wish.suite or "mt_bench"
        source = ", ".join(map(str, wish.judgments))
        sides = sides_of(suite, wish.judgments)
        return succeed(wish.old, wish.judge(), sides, out, {suite: wish.prompts}, source=source, **settings)
    ensure_home()
    recipe = load_recipe(wish.recipe)
    sides = list(_stored(recipe, ArtifactStore().open(), wish.suite))
    if not sides:
        problem = f"nothing was judged yet{'' if wish.suite is None else f' on {wish.suite}'}; `align run` judges first"
        raise BadInput(problem, file=str(wish.recipe))
    suites = recipe.evals.selected()
    prompts = {name: wish.prompts or getattr(suites.get(name), "judge_prompts", None) for name in suites}
    return succeed(wish.old, wish.judge(), sides, out, prompts, PAIRS, source=str(wish.recipe), **settings)


def _stored(recipe: Recipe, store: Store, only: str | None) -> Iterator[Side]:
    """The judgments behind the recipe's current scores, and behind those that the champion was registered with."""
    upstream = Upstream(store, recipe.name)
    champion = champion_for(upstream, upstream.get("policy_checkpoint"))
    for suite in recipe.evals.selected():
        if only in (None, suite):
            scores = {name: upstream.get(f"{name}_evals/{suite}") for name in ("sft", "policy")}
            for name, artifact in (scores | {"champion": champion.scores.get(suite)}).items():
                if artifact is not None:
                    yield from _sides(store, suite, name, artifact)


def _sides(store: Store, suite: str, name: str, scores: Artifact) -> Iterator[Side]:
    folder = store.fetch(scores, deep=True)
    files = [folder / file for file in (JUDGMENTS_FILE, PAIR_JUDGMENTS_FILE) if (folder / file).is_file()]
    if judgments := [one for file in files for one in read_judgments(file)]:
        yield Side(suite, name, tuple(judgments))
