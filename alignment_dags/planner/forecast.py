"""What a recipe's next run will need and cost, stage by stage, before it starts; unknown numbers are None."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from alignment.data.hub import HubUnreachable, asking_briefly
from alignment.errors import BadInput, be, counted
from alignment.models.checkpoint import CONFIG_FILE, read_config
from alignment.models.pin import hub_config
from alignment.models.shape import not_planned, shape_of
from alignment.recipe import Dpo, Recipe
from alignment.stages.stage import ReferenceSummary
from alignment.stages.usage import Usage
from alignment.store import Commit, MissingArtifact, Store
from alignment_dags.check import local_config
from alignment_dags.planner import generated, hours
from alignment_dags.planner.cached import rows_of_shards
from alignment_dags.planner.loads import (
    ON_POLICY,
    SCORERS,
    Lengths,
    Load,
    Remedy,
    bytes_without_activations,
    load_of,
    precision_of,
    remedies,
    uncounted,
    unshardable,
)
from alignment_dags.planner.on_policy import on_policy_seconds
from alignment_dags.run.plan import Planned, plan
from alignment_dags.run.workspace import Workspace
from assets.building.node import Node
from assets.building.upstream import NotBuilt
from assets.champion_reference import LOGPROBS as CHAMPION_LOGPROBS
from assets.responses import BASELINES
from eval.stages.evaluation_report import STAGE as REPORT
from eval.stages.scores import STAGE as SCORES
from resources.pools import Pool

GIB = 2**30
MODELS = Path(__file__).parent / "models"
"""Configurations of well-known models, with their ids on the hub."""
HUB_SECONDS = 5.0  # to wait for an answer of the hub
LAST = 5  # a time is the mean of the last commits
GENERATED = ("candidates", "weak_candidates", "ranked_pairs", "generated_shard", "generated_logprobs")
"""Nodes of the recipe's `generate`, before the first manifest."""
NO_ACTIVATIONS = "activations are not known and come on top"


@dataclass(frozen=True)
class Figure:
    """A number, or None if it is unknown, and how it was computed or why it is unknown."""

    value: float | None
    how: str


@dataclass(frozen=True)
class StageForecast:
    """One node: its current artifacts, the number to make at most, and what they need.

    `current` and `to_make` are None if the hub had to say which artifacts the recipe needs and was not reached.
    `memory_gib` is the memory of one device, and `fits` whether the pool's devices have that much. `slot_seconds` is
    the time of a slot, summed over all artifacts to make. `cost` is in USD, like the prices in pools.yaml.
    """

    stage: str
    pool: str | None
    current: int | None
    to_make: int | None
    memory_gib: Figure
    fits: bool | None
    slot_seconds: Figure
    cost: Figure
    memory_parts_gib: dict[str, float] = field(default_factory=dict)
    """What takes the memory, by name; empty where activations are not known."""
    remedies: list[Remedy] = field(default_factory=list)
    """The nearest changes with which a stage fits that does not."""
    taken: dict[str, float] = field(default_factory=dict)
    """What the current artifacts took: `seconds`, `gpu_seconds` and `cost_usd` summed, `peak_memory_gib` the most; and
    `computed_seconds` and `memory_gib` that a plan gives for them, where it knows the accelerator."""


class History:
    """The artifacts that a recipe has made so far; each kind is read once."""

    def __init__(self, store: Store, recipe: str) -> None:
        self.store = store
        self.recipe = recipe
        self._kinds: dict[str, list[Commit]] = {}

    def latest_first(self, node: Node) -> list[Commit]:
        """Artifacts of this node's stage, latest first; of scores only those of its suite."""
        # an average is of the kind of policies, and takes no training
        made = [commit for commit in self._kind(node.stage.kind) if commit.stage == node.stage.name]
        if node.stage.kind != SCORES.kind:
            return made
        suite = node.name.rpartition("/")[2]  # behind the group of a candidate, too
        return [commit for commit in made if suite in self._suites.get(commit.key, set())]

    def _kind(self, kind: str) -> list[Commit]:
        if kind not in self._kinds:
            made = (commit for commit in self.store.commits(kind) if commit.environment.get("recipe") == self.recipe)
            self._kinds[kind] = sorted(made, key=lambda commit: commit.started_at, reverse=True)
        return self._kinds[kind]

    @cached_property
    def _suites(self) -> dict[str, set[str]]:
        """Key of scores to their suite, by the refs and by the reports that compared them."""
        suites: dict[str, set[str]] = {}
        for model in (*BASELINES.values(), "policy", "champion"):
            for suite, ref in self.store.read_refs(self.recipe, f"{model}_evals").items():
                suites.setdefault(ref.artifact.key, set()).add(suite)
        for report in self._kind(REPORT.kind):
            for name, scores in report.inputs.items():
                compared, _, suite = name.partition(".")
                if compared.endswith("_scores"):
                    suites.setdefault(scores.key, set()).add(suite)
        return suites


@dataclass(frozen=True)
class Stand:
    """What a forecast knows of a recipe: its artifacts, its model, and its data."""

    workspace: Workspace
    history: History
    planned: list[Planned]
    model: ModelConfig
    lengths: Lengths
    rows: Figure
    row_ids: dict[str, list[str]] | None
    """By shard; None where the rows of some shard are not known."""
    sampled: dict[str, generated.Sampling]
    """What the sections `generate` and `rounds` sample."""

    def sampling(self, node: Node) -> generated.Sampling | None:
        """What is sampled for a node of generated pairs or of a later round; None for any other."""
        if node.name.startswith("round_"):
            of_first = node.name == "round_1/policy_checkpoint"
            return None if of_first else self.sampled.get("rounds")
        return self.sampled.get("generate") if node.name.rpartition("/")[2] in GENERATED else None

    def ranked(self, node: Node) -> Commit | None:
        """The pairs that were made last for the node, or for a round before it."""
        store, recipe = self.workspace.store, self.workspace.recipe.name
        prefix = node.name.rpartition("/")[0]
        number = int(prefix.removeprefix("round_")) if prefix.startswith("round_") else 0
        names = [f"round_{one}/ranked_pairs" for one in range(number, 1, -1)] or ["ranked_pairs"]
        refs = (store.read_ref(recipe, name) for name in names)
        found = next((ref for ref in refs if ref is not None), None)
        try:
            return None if found is None else store.commit_of(found.artifact)
        except MissingArtifact:
            return None


def forecast(workspace: Workspace, config: Path | None = None, rows: int | None = None) -> list[StageForecast]:
    """Every node of the recipe, upstream first; `config` is a config.json of the model, used before any other, and
    `rows` the number of preference rows, where neither the store nor the source says it.

    Needs no weights and no hub: numbers that only the hub could give are unknown without it. Raises `BadInput` for
    sources with a mistake.
    """
    unreached: dict[str, str] = {}
    with asking_briefly(HUB_SECONDS):
        planned = plan(workspace, unreached=unreached)
        model = model_config(workspace, planned) if config is None else ModelConfig(read_config(config), str(config))
        row_ids = rows_of_shards(workspace, planned)
        counted = _rows(workspace, row_ids, rows)
        sections = {"generate": workspace.recipe.generate, "rounds": workspace.recipe.rounds}
        sampled = {
            name: generated.Sampling.of(workspace.recipe, section)
            for name, section in sections.items()
            if section is not None
        }
    unsure = _unsure(workspace, unreached)
    history = History(workspace.store, workspace.recipe.name)
    scored = [node for node in workspace.nodes if node.stage.name in SCORERS]
    lengths = hours.lengths_of(workspace.recipe, [made for node in scored for made in history.latest_first(node)])
    stand = Stand(workspace, history, planned, model, lengths, counted, row_ids, sampled)
    return [_stage(node, stand, unsure.get(node.name)) for node in workspace.nodes]


def _rows(workspace: Workspace, row_ids: dict[str, list[str]] | None, given: int | None) -> Figure:
    """Rows of the preferences: given, or of the shards, or as the hub says."""
    if given is not None:
        return Figure(given, "given")
    if row_ids is not None:
        return Figure(sum(map(len, row_ids.values())), "rows of the shards")
    counts = [None if part.hub is None else hours.rows_on_hub(part) for part in workspace.recipe.preferences.parts]
    known = [count for count in counts if count is not None]
    if len(known) < len(counts):
        return Figure(None, "the number of rows is not known before the shards are made; --rows takes it")
    limits = [part.max_rows for part in workspace.recipe.preferences.parts]
    return Figure(sum(min(count, limit or count) for count, limit in zip(known, limits, strict=True)), "by the hub")


@dataclass(frozen=True)
class ModelConfig:
    """The model's configuration and where it was read; or None, and why there is none."""

    config: dict[str, Any] | None
    source: str


def model_config(workspace: Workspace, planned: list[Planned]) -> ModelConfig:
    """The model's configuration: from the store, else from the recipe's model on disk or on the hub."""
    for step in planned:
        if step.node.name in ("sft_checkpoint", "base_model") and step.commit is not None:
            config = json.loads(workspace.store.read(step.commit.artifact, CONFIG_FILE))
            return ModelConfig(config, f"config.json of {step.node.name}")
    sft = workspace.recipe.sft
    source = (sft and sft.adopt) or workspace.recipe.base_model
    if (known := local_config(source)) is not None:
        return ModelConfig(*known)
    assert source.hub is not None
    try:
        return ModelConfig(hub_config(source.hub, source.revision), f"config.json of {source.hub} on the hub")
    except (HubUnreachable, BadInput) as error:
        if (shipped := _shipped(source.hub)) is not None:
            return ModelConfig(shipped, f"the dimensions of {source.hub} that come with the planner; {error}")
        return ModelConfig(None, f"{error}; --config takes its config.json")


def _shipped(hub: str) -> dict[str, Any] | None:
    """Dimensions of a model of the shipped recipes: a plan needs neither the hub nor the right to a gated model."""
    configs = (read_config(path) for path in sorted(MODELS.glob("*.json")))
    return next((config for config in configs if hub in config["_models"]), None)


def _unsure(workspace: Workspace, unreached: dict[str, str]) -> dict[str, str]:
    """Nodes whose needed artifact may or may not be in the store, and the source that was not reached to find out."""
    reasons: dict[str, str] = {}
    for node in workspace.nodes:
        above = (reasons[need] for need in node.needs if need in reasons)
        reason = unreached.get(node.name) or next(above, None)
        if reason is not None and next(workspace.store.commits(node.stage.kind), None) is not None:
            reasons[node.name] = reason
    return reasons


def _stage(node: Node, stand: Stand, unsure: str | None) -> StageForecast:
    workspace = stand.workspace
    mine = [step for step in stand.planned if step.node.name == node.name]
    to_make = sum(step.state in ("missing", "waiting") for step in mine)
    pool = None if node.pool is None else workspace.pools[node.pool]
    load = _load(node, stand, pool)
    memory = _memory(node, workspace.recipe, pool, stand.model, load)
    room = None if pool is None else pool.memory_gib
    fits = None if memory.value is None or room is None else memory.value <= room
    if fits and load is None and memory.value:
        fits = None  # without its activations
    if load is not None and unshardable(load) is not None:
        load, fits = None, False
    if unsure is not None:
        seconds = Figure(None, unsure)
    elif node.adopts:
        seconds = Figure(0.0, "takes a policy that another stage trains")
    else:
        seconds = seconds_of(stand.history.latest_first(node) if to_make else [], to_make)
        if to_make and (better := _computed(node, stand, load, pool, seconds.value is None)) is not None:
            seconds = better
    remedied = []
    if fits is False and load is not None and pool is not None and room is not None:
        remedied = remedies(node.stage.name, load, pool, room * GIB, workspace.recipe.method.needs_reference)
    return StageForecast(
        stage=node.name,
        pool=node.pool,
        current=None if unsure else sum(step.commit is not None for step in mine),
        to_make=None if unsure else to_make,
        memory_gib=memory,
        fits=fits,
        slot_seconds=seconds,
        cost=_judging(node, stand, to_make) or _cost(pool, seconds),
        memory_parts_gib={} if load is None else {name: size / GIB for name, size in load.parts().items()},
        remedies=remedied,
        taken=_taken(node, stand, load, pool, [step.commit for step in mine if step.commit is not None]),
    )


def _taken(node: Node, stand: Stand, load: Load | None, pool: Pool | None, made: list[Commit]) -> dict[str, float]:
    """What was planned beside what it took; nothing for a stage in no pool, or without an artifact."""
    if pool is None or not made:
        return {}
    prices = {name: one.price_per_hour for name, one in stand.workspace.pools.pools.items()}
    each = [Usage.of(one, prices.get(one.environment.get("pool") or str(node.pool))).numbers() for one in made]
    summed = {name: [one[name] for one in each if name in one] for name in ("seconds", "gpu_seconds", "cost_usd")}
    taken = {name: round(sum(values), 3) for name, values in summed.items() if values}
    if peaks := [one["peak_memory_gib"] for one in each if "peak_memory_gib" in one]:
        taken["peak_memory_gib"] = max(peaks)
    if load is not None:
        taken["memory_gib"] = round(load.total / GIB, 3)
        computed = _computed(node, stand, load, pool, never=True) if node.stage.name != "reference_logprobs" else None
        if computed is not None and computed.value is not None:
            taken["computed_seconds"] = round(computed.value, 3)
    return taken


def _load(node: Node, stand: Stand, pool: Pool | None) -> Load | None:
    shape = None if stand.model.config is None else shape_of(stand.model.config)
    if pool is None or shape is None:
        return None
    return load_of(node, stand.workspace.recipe, pool, shape, stand.lengths)


def _memory(node: Node, recipe: Recipe, pool: Pool | None, model: ModelConfig, load: Load | None) -> Figure:
    if precision_of(node, recipe) is None:
        if node.stage.name in ("responses", "candidates"):
            own = recipe.evals.generate.kind == "vllm" and node.stage.name == "responses"
            return Figure(0.0, f"loads no model: {'a server that is started' if own else 'an endpoint'} answers")
        what = "gate: none registers nothing" if node.name == "registered_model" else "loads no model"
        return Figure(0.0, what)
    if model.config is None:
        return Figure(None, model.source)
    if load is not None and (problem := unshardable(load)) is not None:
        return Figure(None, problem)
    if load is not None:
        return Figure(load.total / GIB, f"{load.what} ({model.source})")
    shape = shape_of(model.config)
    why = not_planned(model.config) if shape is None else uncounted(node, shape)
    try:
        size, what = bytes_without_activations(node, recipe, pool, model.config)
    except BadInput as error:
        return Figure(None, str(error))
    return Figure(size / GIB, f"{what} ({model.source}); {NO_ACTIVATIONS}" + (f": {why}" if why else ""))


def _computed(node: Node, stand: Stand, load: Load | None, pool: Pool | None, never: bool) -> Figure | None:
    """Time by rows and operations: of a stage that was never made, and of log-probs of which the cache holds some."""
    rate = None if pool is None else hours.Rate.of(pool)
    recipe, rows = stand.workspace.recipe, stand.rows
    if load is not None and load.precision != "bfloat16":
        rate = None  # the makers' figures are of bfloat16
    if node.name == CHAMPION_LOGPROBS:
        return _under_champion(node, stand, load, rate)
    if node.stage.name in SCORERS and (left := _not_cached(node, stand)) is not None:
        total, outstanding = left
        part = f"{outstanding:,} of {counted(total, 'row')} {be(outstanding)} not in the cache"
        if (per_row := _seconds_per_row(stand.history.latest_first(node))) is not None:
            return Figure(outstanding * per_row, f"{part}, × {per_row:.2g} s, as measured before")
        if outstanding == 0:
            return Figure(0.0, part)
        if load is None or (rate is None and not never):
            return None
        seconds, how = hours.scoring_seconds(recipe, load, stand.lengths, outstanding, rate)
        return Figure(seconds, f"{part}; {how}")
    if never and node.stage.name == ON_POLICY:
        return Figure(*on_policy_seconds(recipe, load, rate))
    if not never or load is None:
        return None
    sampling = stand.sampling(node)
    if node.stage.name == "candidates" and sampling is not None and rate is not None:
        answers = sampling.answers(node.name)
        return Figure(*generated.sampling_seconds(answers, sampling.settings, load, rate))
    if node.stage.name == "responses" and rate is not None:
        answered = hours.answering_seconds(recipe, load, rate)
        return None if answered is None else Figure(*answered)
    if node.stage.name not in (*SCORERS, "policy_checkpoint"):
        return None
    if sampling is not None:
        own = sampling.rows(stand.ranked(node))
        trained = 1.0 if node.training is None else 1 - recipe.held_out_fraction  # none of the pairs is held out
        rows = Figure(None if own.value is None else own.value / trained, own.how)
    elif "generate" in stand.sampled and rows.value is not None and isinstance(node.training, Dpo):
        more = stand.sampled["generate"].rows(stand.ranked(node))
        rows = Figure(None if more.value is None else rows.value + more.value, more.how)
    if rows.value is None:
        return Figure(None, rows.how)
    taken = round(node.rows(rows.value))
    if isinstance(node.training, Dpo):
        return Figure(*hours.training_seconds(recipe, node.training, load, stand.lengths, taken, rate))
    return Figure(*hours.scoring_seconds(recipe, load, stand.lengths, taken, rate))


def _under_champion(node: Node, stand: Stand, load: Load | None, rate: hours.Rate | None) -> Figure:
    """Of the log-probs under the champion that is the reference: of the rows that it has not scored, and how much all
    rows are, which the next champion scores."""
    from alignment_dags.planner.cached import not_scored, reference_to_come, row_ids_of

    store, recipe = stand.workspace.store, stand.workspace.recipe
    try:
        referred = reference_to_come(stand.workspace, stand.planned)
    except NotBuilt as error:
        return Figure(None, str(error))
    if referred.checkpoint is None:
        return Figure(0.0, f"{referred.why}; no row is scored here")
    if stand.rows.value is None:
        return Figure(None, stand.rows.how)
    shard = next(step.commit for step in stand.planned if step.node.name == "generated_shard")
    expected = stand.sampled["generate"].rows(stand.ranked(node)) if shard is None else None
    if expected is not None and expected.value is None:
        return Figure(None, expected.how)
    generated = [] if shard is None else row_ids_of(store, shard.artifact)
    to_come = 0 if expected is None or expected.value is None else round(expected.value)
    total = round(stand.rows.value) + len(generated) + to_come
    outstanding, known = total, "at most "
    if stand.row_ids is not None:
        ids = [row_id for each in stand.row_ids.values() for row_id in each]
        outstanding = not_scored(store, recipe, referred.checkpoint, [*ids, *generated]) + to_come
        known = "at most " if to_come else ""

    def seconds(count: int) -> float | None:
        histories = (stand.history.latest_first(one) for one in stand.workspace.nodes if one.stage.name in SCORERS)
        measured = next(filter(None, map(_seconds_per_row, histories)), None)
        if measured is not None:
            return count * measured
        if load is None or rate is None:
            return None if count else 0.0
        return hours.scoring_seconds(recipe, load, stand.lengths, count, rate)[0]

    whole = seconds(total)
    again = "" if whole is None else f", {whole:.3g} s"
    told = (
        f"{referred.why}: {known}{outstanding:,} of {counted(total, 'row')} {be(outstanding)} not in its cache; the"
        f" next champion scores all {total:,}{again}"
    )
    return Figure(seconds(outstanding), told)


def _judging(node: Node, stand: Stand, to_make: int) -> Figure | None:
    """What a judge costs that scores answers for pairs, or compares two rounds; None where none is asked."""
    sampling = stand.sampling(node)
    if node.stage.name not in ("ranked_pairs", "round_comparison") or sampling is None or not to_make:
        return None
    if not sampling.settings.judged:
        return None
    cost = sampling.judging(node.stage.name == "round_comparison", stand.ranked(node))
    return Figure(cost.value, cost.how)


def _not_cached(node: Node, stand: Stand) -> tuple[int, int] | None:
    """Rows of the shards whose log-probs are to be made, and those of them to score; None while they are not known."""
    from alignment_dags.planner.cached import not_scored

    if node.stage.name == "reference_logprobs" and not node.partitioned:
        return None  # of generated pairs, which nobody knows before they are made
    scored_by = node.needs[0]
    checkpoint = next((step.commit for step in stand.planned if step.node.name == scored_by), None)
    if stand.row_ids is None or checkpoint is None:
        return None
    mine = [step for step in stand.planned if step.node.name == node.name and step.state in ("missing", "waiting")]
    shards = [str(step.shard) for step in mine] if node.partitioned else list(stand.row_ids) if mine else []
    row_ids = [row_id for shard in shards for row_id in stand.row_ids[shard]]
    try:
        return len(row_ids), not_scored(stand.workspace.store, stand.workspace.recipe, checkpoint.artifact, row_ids)
    except MissingArtifact:
        return None


def _seconds_per_row(made: list[Commit]) -> float | None:
    """Of the latest passes that scored something, on the device of the latest."""
    scored = [
        (summary.scored, summary.tokens / summary.tokens_per_second, commit.environment.get("device", ""))
        for commit in made
        for summary in [ReferenceSummary.of(commit)]
        if summary.scored and summary.tokens and summary.tokens_per_second
    ]
    same = [(sequences, seconds) for sequences, seconds, device in scored if device == scored[0][2]][:LAST]
    sequences = sum(count for count, _ in same)
    return 2 * sum(seconds for _, seconds in same) / sequences if sequences else None


def seconds_of(made: list[Commit], to_make: int) -> Figure:
    """The mean time of the recipe's last artifacts of this stage, on the device of the latest."""
    if not to_make:
        return Figure(0.0, "nothing is to be made")
    if not made:
        return Figure(None, hours.UNMEASURED)
    device = made[0].environment.get("device", "")
    same = [commit for commit in made if commit.environment.get("device", "") == device][:LAST]
    mean = sum(commit.seconds for commit in same) / len(same)
    where = device or "its device"
    return Figure(to_make * mean, f"{to_make} × {mean:.1f} s, the mean of the last {len(same)} on {where}")


def _cost(pool: Pool | None, seconds: Figure) -> Figure:
    if pool is None:
        return Figure(None, "runs in no pool")
    if not pool.price_per_hour:
        return Figure(None, "its pool names no price")
    if seconds.value is None:
        return Figure(None, seconds.how)
    return Figure(seconds.value * pool.price_per_hour / 3600, f"{pool.price_per_hour:g} an hour of a slot")
