"""The project in Python: what a recipe has, as pandas tables, its champion as a loaded model, and its runs.

    from alignment_dags import api

    project = api.open("quickstart")
    project.comparisons()                           # pandas: candidate against baseline, a row for each metric
    model, tokenizer = project.champion().load()

Nothing heavy is imported before it is needed. Mistakes raise `BadInput` with the line that `align` prints.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignment.errors import BadInput, did_you_mean

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from alignment.recipe import Recipe
    from alignment.store import Artifact, Commit, Store
    from alignment_dags.run.workspace import Workspace
    from assets.building.upstream import Upstream

Say = Callable[[str], None]
SIDES = {"policy": "policy_scores.", "baseline": "sft_scores.", "champion": "champion_scores."}
"""The models that a report compares, and how it names their scores."""
OPTIONAL = ("chosen", "rejected", "completion", "label", "chosen_score", "rejected_score", "weight", "margin")
"""Columns of rows that a table has only where a row has a value."""
COMPARED = ("n", "baseline", "candidate", "difference", "stderr", "ci_low", "ci_high", "p_value", "verdict")


def open(recipe_or_home: str | os.PathLike[str] | None = None, recipe: str | None = None) -> Project:
    """Opens a project: its store, its MLflow and its recipes.

    A recipe's file or name opens it in the project's own home (ALIGN_HOME). A folder that holds a `store` is another
    home: its store and its MLflow count, whatever the variables say, and `recipe` names one of its recipes (not needed
    if there is only one). Without arguments no recipe is chosen. Raises `BadInput` for what is none of these.
    """
    folder = None if recipe_or_home is None else Path(recipe_or_home).expanduser()
    variables: dict[str, str | None] = {}
    if folder is not None and (folder / "store").is_dir():
        variables = _variables(folder.resolve())
    elif recipe_or_home is not None:
        recipe = str(recipe_or_home)
    project = Project(variables)
    with project._at_home():
        return Project(variables, *_find(project.store, recipe, alone=bool(variables)))


def _variables(home: Path) -> dict[str, str | None]:
    """The environment in which a folder is the project's home, with Dagster's storage beside it."""
    from resources.home import align_home

    if home == align_home():
        return {}
    dagster = home.with_name(home.name.replace("align", "dagster")) if "align" in home.name else home / "dagster"
    elsewhere = dict.fromkeys(("ALIGN_STORE", "MLFLOW_TRACKING_URI", "ALIGN_RECIPES"))
    return elsewhere | {"ALIGN_HOME": str(home), "DAGSTER_HOME": str(dagster)}


def _find(store: Store, recipe: str | None, *, alone: bool) -> tuple[str | None, Path | None]:
    """The name and the file of a recipe; one without a file is known by what the store has of it."""
    from alignment.recipe import load_recipe
    from alignment_dags.recipes import recipe_file, recipe_names

    made = sorted(str(path).rstrip("/").rsplit("/", 1)[-1] for path in store.fs.glob(store.path("refs", "*")))
    if recipe is None:
        recipe = made[0] if alone and len(made) == 1 else None
    if recipe is None:
        return None, None
    if recipe in made and recipe not in recipe_names() and not Path(recipe).is_file():
        return recipe, None
    file = recipe_file(Path(recipe))
    return load_recipe(file).name, file.resolve()


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's folder on this machine, as `transformers` loads it. `version` is None unless it is registered."""

    name: str
    path: Path
    digest: str
    version: str | None = None
    runs_code: bool = False
    """Whether the model's own code runs when it is loaded: its recipe allowed that (`allow_code`)."""

    def load(self, precision: str | None = None, device: str | None = None) -> tuple[Any, Any]:
        """Model (in eval mode) and tokenizer. By default in the precision of the file, on a GPU if there is one."""
        from alignment.models.checkpoint import PRECISIONS, load_model, load_tokenizer, read_config, text_config

        if precision is None:
            config = read_config(self.path)
            stored = text_config(config).get("dtype") or config.get("dtype") or config.get("torch_dtype")
            precision = stored if stored in PRECISIONS else PRECISIONS[0]
        model = load_model(self.path, precision, device, runs_code=self.runs_code)
        return model, load_tokenizer(self.path, runs_code=self.runs_code)


@dataclass(frozen=True)
class Made:
    """The artifact of a stage: its folder on this machine, its data version, and what the stage said of it."""

    path: Path
    digest: str
    key: str
    summary: dict[str, Any]


@dataclass(frozen=True)
class Verdict:
    """What the gate said of the last policy that was evaluated, why, and the report as an HTML file."""

    verdict: str
    reasons: Sequence[str]
    report: Path


@dataclass(frozen=True)
class Project:
    """A home with its store and, if one is chosen, a recipe. `open` makes it."""

    variables: Mapping[str, str | None] = field(default_factory=dict)
    """Environment variables that differ from this process's; None for one that is not set."""
    name: str | None = None
    file: Path | None = None

    # What a recipe has -------------------------------------------------------------------------

    def rows(self, shard: str | None = None) -> pd.DataFrame:
        """The preference rows that the current manifest pins, of all shards or of one, in the manifest's order.

        Columns: `shard`, `row_id`, `form`, `prompt`, `chosen`, `rejected` (of labelled rows `completion`, `label`),
        `source`, `source_row`, the data's scores, weight and margin, and `split` (train, held_out, dropped) with the
        `reason` of what is dropped. Messages are lists of dicts, plain text is text.
        """
        import pandas as pd
        import pyarrow.parquet as pq

        from alignment.data.manifest import open_split, read_manifest
        from alignment.data.rows import ROWS_FILE, SPLIT_AT, decode

        with self._at_home():
            folder = self.store.fetch(self._current("preference_manifest"))
            manifest = read_manifest(folder)
            tables = []
            with open_split(folder, manifest) as split:
                for index, pinned in enumerate(manifest.shards):
                    if shard in (None, pinned.name):
                        with self.store.open(pinned.shard, ROWS_FILE) as stream:
                            rows = _frame(pq.read_table(stream))
                        places = _frame(split.of_shard(index))
                        assert rows["row_id"].equals(places["row_id"])
                        tables.append(rows.assign(shard=pinned.name, split=places["split"], reason=places["reason"]))
        known = {pinned.name for pinned in manifest.shards}
        if shard is not None and shard not in known:
            raise BadInput(f"the manifest has no shard '{shard}'{did_you_mean(shard, known)}", field="shard")
        found = pd.concat(tables, ignore_index=True)
        for side in ("prompt", "chosen", "rejected", "completion"):
            cells = zip(found["form"], found[side], strict=True)
            found[side] = pd.Series(
                [None if pd.isna(cell) else _listed(decode(form, cell)) for form, cell in cells], dtype=object
            )
        empty = [name for name in OPTIONAL if name in found and found[name].isna().all()]
        found = found.drop(columns=[*empty, SPLIT_AT], errors="ignore")
        return found[["shard", *found.columns.drop("shard")]]

    def logprobs(self, shard: str | None = None) -> pd.DataFrame:
        """The reference log-probs that the current manifest pins: `shard`, `row_id`, and for each sequence of a row
        (`chosen` and `rejected`, or `completion` and `partner`) its `_logp`, `_tokens` and cache `_key`.

        Raises `BadInput` if the recipe's method has no reference.
        """
        import pandas as pd
        import pyarrow.parquet as pq

        from alignment.data.manifest import read_manifest
        from alignment.logprobs.table import LOGPROBS_FILE

        with self._at_home():
            manifest = read_manifest(self.store.fetch(self._current("preference_manifest")))
            shards = {pinned.name: pinned.reference for pinned in manifest.shards}
            if shard is not None and shard not in shards:
                raise BadInput(f"the manifest has no shard '{shard}'{did_you_mean(shard, shards)}", field="shard")
            tables = []
            for name, reference in shards.items():
                if reference is None:
                    raise BadInput(f"the method of {self.name} has no reference, so there are no log-probs")
                if shard in (None, name):
                    with self.store.open(reference, LOGPROBS_FILE) as stream:
                        tables.append(_frame(pq.read_table(stream)).assign(shard=name))
        found = pd.concat(tables, ignore_index=True)
        return found[["shard", *found.columns.drop("shard")]]

    def samples(self, suite: str | None = None, of: str = "policy") -> pd.DataFrame:
        """The scored answers of a model, a row for each item and metric: `suite`, `id`, `cluster`, `metric`, `value`,
        `response`, and `detail` as a dict.

        `of` is `policy`, `baseline` or `champion` as the current report compares them, else a recipe or MODEL@VERSION.
        """
        import pandas as pd
        import pyarrow.parquet as pq

        from alignment_dags.registry.compare import side_of
        from eval.suites.samples import SAMPLES_FILE

        with self._at_home():
            if of in SIDES:
                inputs = self._report().inputs
                prefix = SIDES[of]
                scores = {name.removeprefix(prefix): one for name, one in inputs.items() if name.startswith(prefix)}
            else:
                scores = side_of(self.store, of).scores
            if suite is not None and suite not in scores:
                there = ", ".join(sorted(scores)) or "none"
                raise BadInput(f"no scores of suite '{suite}' of {of}; there are {there}", field="suite")
            if not scores:
                raise BadInput(f"no scores of {of}", field="of")
            tables = []
            for name in sorted(scores) if suite is None else [suite]:
                with self.store.open(scores[name], SAMPLES_FILE) as stream:
                    tables.append(_frame(pq.read_table(stream)))
        found = pd.concat(tables, ignore_index=True)
        return found.assign(detail=[json.loads(text) for text in found["detail"]])

    def comparisons(self, against: str = "baseline") -> pd.DataFrame:
        """The current report's comparison of the policy with its `baseline` or with the `champion`: a row for each
        metric with `suite`, `metric`, `n`, `baseline` and `candidate` (means), `difference`, `stderr`, `ci_low` and
        `ci_high` (95 %), `p_value`, `verdict`. Empty without a champion."""
        from eval.stages.evaluation_report import ReportSummary

        with self._at_home():
            summary = ReportSummary.of(self._report())
        if against not in ("baseline", "champion"):
            raise BadInput(f"'{against}' is neither baseline nor champion", field="against")
        compared = summary.comparisons if against == "baseline" else summary.champion or {}
        return _compared(
            {
                (suite, metric): one.model_dump(mode="json")
                for suite, metrics in compared.items()
                for metric, one in metrics.items()
            }
        )

    def verdict(self) -> Verdict:
        """What the gate said in the current report."""
        from eval.stages.evaluation_report import REPORT_FILE, ReportSummary

        with self._at_home():
            report = self._report()
            summary = ReportSummary.of(report)
            return Verdict(summary.verdict, summary.reasons, self.store.fetch(report.artifact) / REPORT_FILE)

    # Models ------------------------------------------------------------------------------------

    def champion(self, model: str | None = None) -> Checkpoint:
        """The champion of the recipe's model, or of `model` (MODEL or MODEL@VERSION)."""
        from alignment_dags.registry.registrations import name_and_version, registration_of
        from assets.registration import RegistrationSummary

        with self._at_home():
            model = self._model() if model is None else model
            registration = registration_of(self.store, *name_and_version(model))
            name, version = RegistrationSummary.of(registration).model_version
            return self._checkpoint(name, registration.inputs["policy"], version)

    def policy(self) -> Checkpoint:
        """The recipe's newest policy, registered or not."""
        with self._at_home():
            return self._checkpoint(str(self.name), self._current("policy_checkpoint"), None)

    def compare(
        self, baseline: str, candidate: str, metric: str | None = None, margin: float | None = None
    ) -> pd.DataFrame:
        """Two models side by side, each a recipe, a MODEL@VERSION or a samples file, as `align compare` does it."""
        from alignment_dags.registry.compare import compare, is_file

        with self._at_home():
            found = compare(baseline, candidate, metric, margin)
        if is_file(baseline) and is_file(candidate):  # these are compared by metric alone
            return _compared({("", name): one for name, one in found.items()}).drop(columns="suite")
        return _compared({(name.partition("/")[0], name.partition("/")[2]): one for name, one in found.items()})

    def lineage(self, model: str | None = None) -> dict[str, Any]:
        """What made the champion (or MODEL@VERSION): the object that `align lineage --json` prints."""
        from alignment_dags.registry.lineage import lineage_of

        with self._at_home():
            return lineage_of(self._model() if model is None else model)

    def lineage_rows(self, model: str | None = None) -> pd.DataFrame:
        """The rows that the champion (or MODEL@VERSION) was given: `row_id`, `shard`, `split` (train, held_out or
        dropped) and the `reason` of what was dropped, by the manifest or in training."""
        from alignment_dags.registry.rows import rows_of

        with self._at_home():
            return _frame(rows_of(self.store, self._model() if model is None else model))

    # How things stand --------------------------------------------------------------------------

    def status(self) -> pd.DataFrame:
        """A row for the recipe, or for each recipe in use if none is chosen, as `align status` shows it; `champion`,
        `last_night` and `next_night` are None where there is none, and `stale` maps stages to why they are behind."""
        from datetime import UTC, datetime

        import pandas as pd

        from alignment_dags.status import status

        with self._at_home():
            return pd.DataFrame(status([] if self.file is None else [self.file], datetime.now(UTC))["recipes"])

    def nights(self, last: int = 10) -> pd.DataFrame:
        """The recipe's latest nights, the latest first: `id`, `outcome`, `reason`, `version`, `took` and more."""
        import pandas as pd

        from alignment_dags.nights.records import latest_nights

        with self._at_home():
            return pd.DataFrame(latest_nights(self.store, self._recipe(), last)["nights"])

    # Runs --------------------------------------------------------------------------------------

    def run(self, say: Say | None = None) -> dict[str, Any]:
        """Brings the recipe up to date, as `align run` does, and returns what that command prints with `--json`.

        It runs in a process of its own, so a script needs no `if __name__ == "__main__"` and a notebook can call it.
        Each line of progress goes to `say` (stderr by default). Raises `BadInput`, and `RunFailed` if a step failed or
        the gate said no; the tables then still show what was made.
        """
        command = "from alignment_dags.cli import main; main()"
        environment = {name: value for name, value in self._environment().items() if value is not None}
        arguments = [sys.executable, "-c", command, "run", str(self._written()), "--json"]
        said = ""
        with tempfile.TemporaryFile() as printed:  # a pipe that nobody reads meanwhile would fill up
            with subprocess.Popen(
                arguments, env=environment, stdout=printed, stderr=subprocess.PIPE, encoding="utf-8"
            ) as process:
                assert process.stderr is not None
                try:
                    for line in process.stderr:
                        said = line.rstrip()
                        (say or _to_stderr)(said)
                except BaseException:
                    process.send_signal(signal.SIGINT)  # as Ctrl-C on a terminal: it stops where it can go on
                    raise
            printed.seek(0)
            text = printed.read()
        if process.returncode == 2:
            raise BadInput(said.removeprefix("error: "))
        result: dict[str, Any] = {"failure": said, "stopped": None, "dagster_runs": []}
        result |= json.loads(text or b"{}")
        if failure := result["failure"] or result["stopped"]:
            from alignment_dags.run.launch import RunFailed

            raise RunFailed(next(iter(result["dagster_runs"][-1:]), ""), failure)
        return result

    def derive(self, changes: Mapping[str, Any], name: str) -> Project:
        """The same recipe with other values of some keys (`{"optimise.beta": 0.5}`) under another name, as
        `align run --set … --as NAME` makes it. What does not depend on the changes is found in the store."""
        from alignment_dags.recipes import derive

        with self._at_home():
            given = [f"{key}={json.dumps(value)}" for key, value in changes.items()]  # JSON is YAML
            return Project(self.variables, name, derive(self._written(), given, name))

    def stage(self, name: str, shard: str | None = None) -> Made:
        """Runs one stage of the recipe in this process, on the current results of the stages before it, and returns its
        artifact; what the store has already is found and not made.

        Nothing is reported to Dagster or MLflow, and the recipe's current results stay: `run` does both. Raises
        `BadInput` for a stage that the recipe does not have or that has nothing to make, and if one before it was
        never made.
        """
        from alignment.stages import execute
        from assets.building.node import NotNeeded
        from assets.building.upstream import NotBuilt

        with self._at_home():
            workspace = self._workspace()
            nodes = {node.name: node for node in workspace.nodes}
            if (node := nodes.get(name)) is None or name == "registered_model":
                told = did_you_mean(name, nodes) if node is None else "; only a run registers, behind the gate"
                raise BadInput(f"no stage '{name}' to run{told}", field="name")
            if node.partitioned != (shard is not None):
                raise BadInput("needs a shard" if node.partitioned else "has no shards", field=name)
            upstream = workspace.upstream()
            if shard is not None and shard not in (known := set(upstream.shards(workspace.recipe))):
                raise BadInput(f"the source has no shard '{shard}'{did_you_mean(shard, known)}", field="shard")
            try:
                commit = execute(node.stage, node.request(upstream, shard), workspace.store)
            except (NotNeeded, NotBuilt) as error:
                raise BadInput(str(error), field=name) from error
            return Made(workspace.store.fetch(commit.artifact), commit.digest, commit.key, commit.summary)

    # The project's home, and what is read from it ----------------------------------------------

    @property
    def store(self) -> Store:
        """The artifact store."""
        from resources.store import ArtifactStore

        with self._at_home():
            return ArtifactStore().open()

    def _environment(self) -> dict[str, str | None]:
        return {**os.environ, **self.variables}

    @contextmanager
    def _at_home(self) -> Iterator[None]:
        """Meanwhile this process's environment is the project's; afterwards it is as it was."""
        from resources.home import ensure_home

        before = dict(os.environ)
        try:
            _set(self.variables)
            ensure_home()
            yield
        finally:
            _set({name: before.get(name) for name in {*before, *os.environ}})

    def _chosen(self) -> str:
        if self.name is None:
            raise BadInput("no recipe is chosen: open one by its file or its name, open(HOME, recipe=NAME) in a home")
        return self.name

    def _written(self) -> Path:
        """The recipe's file."""
        if self.file is None:
            raise BadInput(f"has no file here: {self._chosen()} is known by its results alone", field="recipe")
        return self.file

    def _recipe(self) -> Recipe:
        from alignment.recipe import load_recipe

        return load_recipe(self._written())

    def _model(self) -> str:
        """The name under which the recipe registers."""
        return self._chosen() if self.file is None else self._recipe().model_name

    def _workspace(self) -> Workspace:
        from alignment_dags.run.workspace import Workspace
        from resources.pools import load_pools

        return Workspace(self._recipe(), load_pools())

    def _upstream(self) -> Upstream:
        from assets.building.upstream import Upstream

        return Upstream(self.store, self._chosen())

    def _current(self, stage: str) -> Artifact:
        """The recipe's current artifact of a stage; raises `BadInput` if there is none."""
        artifact = self._upstream().get(stage)
        if artifact is None:
            raise BadInput(f"{self.name} has no {stage} yet; run it first")
        return artifact

    def _report(self) -> Commit:
        return self.store.commit_of(self._current("evaluation_report"))

    def _checkpoint(self, name: str, policy: Artifact, version: str | None) -> Checkpoint:
        from alignment.stages.stage import CheckpointSummary

        may_run_code = CheckpointSummary.of(self.store.commit_of(policy)).may_run_code
        return Checkpoint(name, self.store.fetch(policy), policy.digest, version, may_run_code)


def _set(variables: Mapping[str, str | None]) -> None:
    """Sets environment variables, and unsets those that are None."""
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _listed(content: Any) -> Any:
    """A list of messages, which is what libraries take; plain text as it is."""
    return content if isinstance(content, str) else list(content)


def _frame(table: pa.Table) -> pd.DataFrame:
    frame: pd.DataFrame = table.to_pandas()
    return frame


def _compared(found: Mapping[tuple[str, str], Mapping[str, Any]]) -> pd.DataFrame:
    """Comparisons by suite and metric as a table, the interval as two columns."""
    import pandas as pd

    rows = []
    for (suite, metric), one in found.items():
        low, high = one["ci95"] or (None, None)
        values = {**one, "ci_low": low, "ci_high": high}
        rows.append({"suite": suite, "metric": metric, **{name: values[name] for name in COMPARED}})
    return pd.DataFrame(rows, columns=["suite", "metric", *COMPARED])
