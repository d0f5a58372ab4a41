"""The same steps for every asset: build the request, find or make its artifact, report it.

Dagster reads the annotations of an asset's function, so this file has them evaluated.
"""

import math
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import dagster as dg

from alignment.address import shown
from alignment.errors import BadInput, chain, one_line
from alignment.guards import GATE, Guard
from alignment.progress import CURVES
from alignment.recipe.recipe import Recipe
from alignment.stages.execute import DAGSTER_RUN, RECIPE_NAME, REQUEST_FILE, execute
from alignment.stages.stage import Request
from alignment.stages.usage import POOL, Usage
from alignment.store import Artifact, Commit, Ref, Store
from alignment.store.erase import current_erasure
from assets.building.node import Node, NotNeeded, Shown, Work
from assets.building.upstream import NotBuilt, Upstream
from resources.alerts import Alert, send
from resources.compute import ComputePools, check_packages, check_processes, check_residency
from resources.home import mlflow_page
from resources.launchers import Launch, launcher_for
from resources.mlflow import Tracking
from resources.mlflow_live import live_curves
from resources.mlflow_runs import Opening, Report, Reported
from resources.pools import Pools
from resources.store import ArtifactStore

OWNERS = ["team:alignment"]
SHARDS_PER_RUN = 100
BAD_INPUT = "bad_input"
NOTHING = "nothing"
"""The data version of a node that has nothing to make."""


def shards_definition(recipe_name: str) -> dg.DynamicPartitionsDefinition:
    """The dynamic partitions of a recipe's shards."""
    return dg.DynamicPartitionsDefinition(name=f"{recipe_name}_shards")


def asset_key(recipe_name: str, node_name: str) -> dg.AssetKey:
    """The asset key of a node."""
    return dg.AssetKey([recipe_name, *node_name.split("/")])


def asset_step(recipe_name: str, node_name: str) -> str:
    """The name of an asset's step in Dagster's runs."""
    return f"{recipe_name}__{node_name.replace('/', '__')}"


def asset_resources(compute: ComputePools | None = None) -> dict[str, dg.ConfigurableResource[Any]]:
    """The resources that every asset needs, by name."""
    return {"store": ArtifactStore(), "tracking": Tracking(), "compute": compute or ComputePools()}


def build_asset(node: Node, recipe: Recipe, pools: Pools) -> dg.AssetsDefinition:
    """The Dagster asset of a node.

    A run over one shard yields its result. A run over many shards logs one materialization for each, with its own data
    version, and yields nothing, because a yielded version would count for all shards.
    """
    tags = pools[node.pool].step_tags() if node.pool else None

    @dg.multi_asset(
        name=asset_step(recipe.name, node.name),
        specs=[
            dg.AssetSpec(
                key=asset_key(recipe.name, node.name),
                deps=[asset_key(recipe.name, need) for need in (*node.needs, *node.after)],
                description=node.description,
                group_name=recipe.name,
                code_version=str(node.stage.code_version),
                kinds=set(node.kinds),
                owners=OWNERS,
                partitions_def=shards_definition(recipe.name) if node.partitioned else None,
                skippable=node.partitioned,
                automation_condition=node.automation,
            )
        ],
        check_specs=[
            dg.AssetCheckSpec(name, asset=asset_key(recipe.name, node.name), description=about)
            for name, about in (node.guards.about if node.guards else {}).items()
        ],
        pool=node.pool,
        op_tags=tags,
        backfill_policy=dg.BackfillPolicy.multi_run(shards_per_run(node, pools)) if node.partitioned else None,
    )
    def asset(
        context: dg.AssetExecutionContext, store: ArtifactStore, tracking: Tracking, compute: ComputePools
    ) -> Iterator[dg.MaterializeResult[Any]]:
        materializer = Materializer(node, recipe, compute.load(), store.open(), tracking, context)
        if not node.partitioned:
            data_version, metadata = materializer.materialize(None)
            checks = [check_result(asset_key(recipe.name, node.name), guard) for guard in materializer.guards]
            yield dg.MaterializeResult(
                metadata=metadata, data_version=dg.DataVersion(data_version), check_results=checks
            )
        elif len(context.partition_keys) == 1:
            data_version, metadata = materializer.materialize(context.partition_keys[0])
            yield dg.MaterializeResult(metadata=metadata, data_version=dg.DataVersion(data_version))
        else:
            materializer.materialize_each(context.partition_keys)

    return asset


def check_result(key: dg.AssetKey, guard: Guard) -> dg.AssetCheckResult:
    """A guard's finding as Dagster shows it."""
    severity = dg.AssetCheckSeverity.ERROR if guard.severity == "error" else dg.AssetCheckSeverity.WARN
    return dg.AssetCheckResult(
        passed=guard.passed,
        asset_key=key,
        check_name=guard.name,
        severity=severity,
        description=guard.sentence,
        metadata={plain(name): float(value) for name, value in guard.numbers.items() if math.isfinite(value)},
    )


def shards_per_run(node: Node, pools: Pools) -> int:
    """Shards that one Dagster run of the node may take.

    If the stage runs in the step's process, the shards share the process and a loaded model. A launch through Dagster
    Pipes has to yield its result, which is possible for one shard only.
    """
    return SHARDS_PER_RUN if node.pool is None or pools[node.pool].launcher == "step" else 1


def run_stage(work: Work) -> Commit:
    """Makes the artifact as nearly every node does: CPU stages here, GPU stages through the pool's launcher."""
    if work.pool is None:
        return execute(work.stage, work.request, work.store)
    launch = Launch(work.stage, work.request, work.store, work.pool, work.context, work.pool_name)
    return launcher_for(work.pool).run(launch)


class Materializer:
    """Materializes one node in one step, shard by shard."""

    def __init__(
        self,
        node: Node,
        recipe: Recipe,
        pools: Pools,
        store: Store,
        tracking: Tracking,
        context: dg.AssetExecutionContext,
    ) -> None:
        self.node = node
        self.recipe = recipe
        self.pools = pools
        self.store = store
        self.tracking = tracking
        self.context = context
        self.guards: list[Guard] = []
        """The findings on the artifact that was materialized last."""

    def materialize(self, shard: str | None) -> tuple[str, dict[str, Any]]:
        """Data version and metadata of the artifact, reported to MLflow and pointed to by its ref."""
        name = f"{self.recipe.name}.{self.node.name}"
        try:
            with self.store.alone(name) if self.node.alone else nullcontext():
                return self._materialize(shard)
        except NotNeeded as why:
            self.context.log.info(f"nothing to make: {why}")
            about = self.node.guards.about if self.node.guards else {}
            self.guards = [Guard(name, True, f"nothing to check: {why}") for name in about]
            return NOTHING, {"nothing_to_make": str(why)}
        except (BadInput, NotBuilt) as error:
            told = shown(f"{error}{self._if_store_is_empty()}")
            raise dg.Failure(told, metadata={BAD_INPUT: told}, allow_retries=False) from error
        except (dg.Failure, dg.RetryRequested):
            raise
        except Exception as error:
            if gone := self._if_store_is_empty():  # whatever met it first: a file, a record, a digest
                told = shown(f"{error}{gone}")
                raise dg.Failure(told, metadata={BAD_INPUT: told}, allow_retries=False) from None
            if not _holds_secret(error):
                raise
            told = shown(f"{type(error).__name__}: {one_line(error)}")
            raise dg.Failure(told) from None  # Dagster would record its cause

    def _if_store_is_empty(self) -> str:
        """What to say where nothing at all was built: a store that went in mid-run looks like a new one, and whatever
        was being read from it like a folder without a model or rows."""
        if not self.node.needs or self.store.fs.exists(self.store.path("refs")):
            return ""
        return f"; nothing has been built here: if the artifact store {self.store.shown} was there before, put it back"

    def _materialize(self, shard: str | None) -> tuple[str, dict[str, Any]]:
        pool_name = self.node.pool or ""
        os.environ.update({DAGSTER_RUN: self.context.run.run_id, RECIPE_NAME: self.recipe.name, POOL: pool_name})
        check_residency(self.recipe, self.pools, self.store)
        check_packages(self.recipe, self.pools)
        check_processes(self.recipe, self.pools)
        upstream = Upstream(self.store, self.recipe.name)
        request = self.node.request(upstream, shard)
        commit = self.store.find(self.node.stage.kind, self.node.stage.key(request))
        hit = commit is not None
        if commit is None:
            pool = self.pools[pool_name] if pool_name else None
            work = Work(self.node.stage, request, self.store, self.tracking, pool, self.context, pool_name)
            with self.curves(request) if self.node.is_checkpoint else nullcontext():
                commit = (self.node.make or run_stage)(work)
        self.context.log.info(f"{'found in the store' if hit else 'made'} (key {commit.key[:12]})")
        self.node.publish(self.store, self.tracking, commit)
        shown = self.node.show(commit, self.store.fetch(commit.artifact, deep="once"))
        reported = self.report(upstream, commit, shard, shown)
        metadata = self.metadata(commit, hit, reported, shown)
        self.guards = self.node.guards.findings(self.store, commit) if self.node.guards else []
        self.alert(commit)
        ref = Ref(artifact=commit.artifact, dagster_run_id=self.context.run.run_id, mlflow_run_id=reported.run_id)
        self.store.write_ref(ref, self.recipe.name, self.node.name, shard)  # last: all else is done
        if current_erasure(self.store, commit.artifact) is not None:
            self.store.remove_ref(self.recipe.name, self.node.name, shard)
            raise dg.Failure("the artifact was erased while it was reported; the next run makes it again")
        return commit.digest, metadata

    def alert(self, commit: Commit) -> None:
        """Sends the guards that do not hold, once for an artifact: not when its asset already pointed to it.

        The gate's own verdict is left to the night, which says what became of the champion.
        """
        red = [guard for guard in self.guards if not guard.passed and guard.name != GATE]
        before = self.store.read_ref(self.recipe.name, self.node.name)
        guards = self.node.guards
        if guards and red and (before is None or before.artifact.key != commit.key):
            text = "\n".join(guards.told(guard, self.node.name, self.recipe.name) for guard in red)
            send(self.recipe.alerts, Alert(self.recipe.name, "guard_failed", text))

    def materialize_each(self, shards: list[str]) -> None:
        """Materializes every shard by itself; failed shards are named at the end, and the others are done."""
        failures: dict[str, dg.Failure] = {}
        for shard in shards:
            try:
                data_version, metadata = self.materialize(shard)
            except dg.Failure as failure:
                failures[shard] = failure
                self.context.log.error(f"{shard}: {failure.description}")
                continue
            except Exception as error:  # of this shard only: the others go on
                failures[shard] = dg.Failure(f"{type(error).__name__}: {one_line(error)}")
                self.context.log.exception(f"{shard}: {one_line(error)}")
                continue
            event = dg.AssetMaterialization(
                asset_key=asset_key(self.recipe.name, self.node.name),
                partition=shard,
                metadata=metadata,
                tags={"dagster/data_version": data_version, "dagster/code_version": str(self.node.stage.code_version)},
            )
            self.context.log_event(event)
        if failures:
            reasons = "; ".join(f"{shard}: {failure.description}" for shard, failure in failures.items())
            all_bad_input = all(BAD_INPUT in failure.metadata for failure in failures.values())
            raise dg.Failure(
                f"{len(failures)} of {len(shards)} shards failed, the others are done: {reasons}",
                metadata={BAD_INPUT: reasons} if all_bad_input else {},
                allow_retries=False,
            )

    def curves(self, request: Request) -> AbstractContextManager[None]:
        """Meanwhile MLflow shows how the training goes."""
        stage = self.node.stage
        key = stage.key(request)
        settings = dict(flat(request.model_dump(mode="json")))
        run_id = self.context.run.run_id
        experiment = self.recipe.experiment
        opening = Opening(self.recipe.name, self.node.name, stage.kind, key, stage.name, run_id, settings, experiment)
        path = self.store.work_path(stage.kind, key) / CURVES
        return live_curves(self.tracking, opening, path, self.context.log.info)

    def report(self, upstream: Upstream, commit: Commit, shard: str | None, shown: Shown) -> Reported:
        """Reports the artifact to MLflow."""
        runs = upstream.mlflow_runs()
        known = {name: runs[artifact.key] for name, artifact in commit.inputs.items() if artifact.key in runs}
        return self.tracking.report(
            Report(
                recipe=self.recipe.name,
                asset=self.node.name,
                partition=shard,
                commit=commit,
                uri=self.store.uri(commit.artifact),
                params=self.params(commit),
                metrics=numbers(commit.summary) | self.usage(commit).numbers(),
                dagster_run_id=self.context.run.run_id,
                history=shown.history,
                upstream=known,
                files=shown.files,
                checkpoint=self.node.is_checkpoint,
                experiment=self.recipe.experiment,
            )
        )

    def usage(self, commit: Commit) -> Usage:
        """What the artifact took when it was made, at the price of the pool that made it."""
        pool = self.pools.pools.get(commit.environment.get("pool") or self.node.pool or "")
        return Usage.of(commit, pool.price_per_hour if pool else None)

    def params(self, commit: Commit) -> dict[str, Any]:
        """The request's own settings under flat names, without its input artifacts."""
        text = self.store.read(commit.artifact, REQUEST_FILE)
        return dict(flat(self.node.stage.request.model_validate_json(text).model_dump(mode="json")))

    def metadata(self, commit: Commit, hit: bool, reported: Reported, shown: Shown) -> dict[str, Any]:
        """What Dagster shows of a materialization, in this order: what a person reads first, links, then the rest."""
        values: dict[str, Any] = {name: commit.summary[name] for name in shown.first if commit.summary.get(name)}
        values |= {name: dg.MetadataValue.url(mlflow_page(page)) for name, page in shown.pages.items()}
        values |= {path.stem: dg.MetadataValue.url(reported.file(path.name)) for path in shown.files if is_page(path)}
        values |= {name: dg.MetadataValue.md(text) for name, text in shown.markdown.items()}
        values |= {
            "mlflow": dg.MetadataValue.url(reported.url),
            "dagster/uri": self.store.uri(commit.artifact),
            "reused": hit,
            **self.usage(commit).numbers(),
            "key": commit.key,
        }
        plotted = numbers(commit.summary)
        if "rows" in plotted:
            values["dagster/row_count"] = int(plotted["rows"])
        texts = {name: text for name, text in commit.summary.items() if isinstance(text, str)}
        rest = {**(plotted if shown.plotted is None else shown.plotted), **texts}
        return values | {name: value for name, value in rest.items() if name not in values}


def is_page(path: Path) -> bool:
    """Whether a file is one that a person opens in a browser."""
    return path.suffix == ".html"


def _holds_secret(error: BaseException) -> bool:
    """Whether the text of an error, or of its cause, has an address that may not be shown."""
    return any(shown(str(one)) != str(one) for one in chain(error))


def numbers(summary: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """The finite numbers of a summary under flat names, lists left out."""
    flat_numbers: dict[str, float] = {}
    for name, value in summary.items():
        if isinstance(value, dict):
            flat_numbers |= numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            flat_numbers[plain(prefix + name)] = value
    return flat_numbers


def plain(name: str) -> str:
    """A name that MLflow takes: letters, digits and _-./ and space."""
    return "".join(character if character.isalnum() or character in "_-./ " else "_" for character in name)


def flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Settings under dotted names; artifacts and files are inputs, not settings, and are left out."""
    if isinstance(value, dict):
        if set(value) == set(Artifact.model_fields) or {"url", "sha256"} <= set(value):
            return
        for name, item in value.items():
            yield from flat(item, f"{prefix}.{name}" if prefix else str(name))
    elif not isinstance(value, list) and value is not None:
        yield plain(prefix), value
