"""A person over the gate: returns and overrides are registrations like any other, hold, and are seen everywhere."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import dagster as dg
import pyarrow.parquet as pq
import pytest
import yaml
from filelock import FileLock, Timeout

from alignment.errors import BadInput, CorruptArtifact, MissingArtifact
from alignment.recipe import Recipe, load_recipe
from alignment.store import Artifact, Store
from alignment_dags.cli.models import lines
from alignment_dags.registry.cards import write_card
from alignment_dags.registry.export import export, show_exported
from alignment_dags.registry.lineage import lineage_of
from alignment_dags.registry.promote import Promotion, decide, promote
from alignment_dags.registry.reports import write_report
from alignment_dags.retention.collect import carry_out, collect, plan_of, show_collected
from alignment_dags.retention.withdraw import restore, withdraw
from alignment_dags.run.workspace import Workspace
from assets.building.factory import BAD_INPUT, asset_key, asset_resources, build_asset
from assets.building.node import Work
from assets.building.upstream import Upstream
from assets.graph import nodes_of
from assets.registered_model import alias_moved
from assets.registration import write_decision
from resources.mlflow import Tracking
from resources.pools import load_pools
from resources.store import ArtifactStore

PASSES = {"metrics": {"ifeval/prompt_level_strict_acc": {"no_regression": 1.0}}}
FAILS = {"metrics": {"ifeval/prompt_level_strict_acc": {"at_least": 1.1}}}
Write = Callable[..., Path]
Align = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture
def write(small_recipe: dict[str, Any], tmp_path: Path) -> Write:
    """Writes the small recipe with a gate; another `beta` gives another policy."""

    def write(beta: float, gate: Any = PASSES) -> Path:
        path = tmp_path / "recipe.yaml"
        data = small_recipe | {"dpo": small_recipe["dpo"] | {"beta": beta}, "gate": gate}
        path.write_text(yaml.safe_dump(data), encoding="utf-8")
        return path

    return write


def carried_out_alone(workspace: Workspace, *_: Any) -> str:
    return registered_model_alone(workspace.recipe)


def registered_model_alone(recipe: Recipe) -> str:
    """Materializes `registered_model` and nothing else, as a person may from the UI."""
    assets = [build_asset(node, recipe, load_pools()) for node in nodes_of(recipe, load_pools())]
    with dg.DagsterInstance.get() as instance:
        return dg.materialize(
            assets,
            instance=instance,
            resources=asset_resources(),
            selection=[asset_key("small", "registered_model")],
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        ).run_id


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Promotions carried out in this process."""
    monkeypatch.setattr("alignment_dags.registry.promote._carry_out", carried_out_alone)


def version_with_tags() -> tuple[str, dict[str, str]]:
    found = Tracking().aliased("small")
    assert found is not None
    return found


def test_an_override_is_a_promotion_that_everybody_sees(
    write: Write, finished: Callable[..., Upstream], bring_up_to_date: Callable[..., Upstream], align_process: Align
) -> None:
    path = write(0.1, FAILS)
    made = finished(load_recipe(path), failure="the gate says fail")
    with pytest.raises(BadInput, match="needs --reason"):
        promote(Promotion("small", override=True, reason=" ", recipe=path), print)
    manifest = made("preference_manifest")
    shard = next(name for name in made.store.commit_of(manifest).inputs if name.startswith("shards."))
    gone = train_ids(made.store, manifest, shard.removeprefix("shards."))[:1]
    withdraw(path, gone, [], "")
    with pytest.raises(BadInput, match="the policy of small cannot be promoted: 1 of its rows was withdrawn since"):
        promote(Promotion("small", override=True, reason="the demo is tomorrow", recipe=path), print)
    restore(path, gone, [])
    code, told, error = align_process(
        "promote", "small", "--override", "--reason", "the demo is tomorrow", "--recipe", str(path)
    )

    assert code == 0, error
    assert told["version"] == "1"
    assert told["gate"].startswith("fail: ")
    version, tags = version_with_tags()
    assert (version, tags["align.promoted_by"]) == ("1", "override")
    assert "the demo is tomorrow" in tags["align.promotion"]
    lineage = lineage_of("small")
    assert lineage["registration"]["promoted_by"] == "override"
    assert lineage["gate"]["verdict"] == "fail"
    page = "\n".join(lines(lineage))
    assert "PROMOTED DESPITE THE GATE" in page
    assert "the demo is tomorrow" in page

    again = promote(Promotion("small", override=True, reason="once more", recipe=path), print)
    assert (again["version"], again["decision"]) == ("1", None), "it is champion already"
    launched: list[Any] = bring_up_to_date.launched  # type: ignore[attr-defined]
    launched.clear()
    bring_up_to_date(load_recipe(path))
    assert launched == [], "the decision stands, and the report is still the one it was made over"

    with pytest.raises(dg.Failure, match="the gate says fail"):
        bring_up_to_date(load_recipe(write(0.9, FAILS)))
    assert version_with_tags()[0] == "1", "an override is for one policy"
    next_one = bring_up_to_date(load_recipe(write(0.9)))
    report = next_one.store.commit_of(next_one("evaluation_report"))
    assert "promoted despite the gate" in report.summary["notes"][0]
    assert "the demo is tomorrow" in (next_one.store.fetch(report.artifact) / "report.html").read_text(encoding="utf-8")
    assert version_with_tags()[1]["align.promoted_by"] == "gate"
    with pytest.raises(dg.Failure, match="the gate says fail"):
        bring_up_to_date(load_recipe(write(0.1, FAILS)))
    assert version_with_tags()[0] == "2", "and it is spent: the same policy does not come back by it"


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("missing", ["evaluation_report", "policy_evals/ifeval"])
def test_no_override_goes_by_the_evaluation_of_an_earlier_policy(
    missing: str,
    write: Write,
    finished: Callable[..., Upstream],
    bring_up_to_date: Callable[..., Upstream],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = finished(load_recipe(write(0.1))).ref(missing)
    assert before is not None
    path = write(0.9, FAILS)
    with pytest.raises(dg.Failure, match="the gate says fail"):
        bring_up_to_date(load_recipe(path))
    store: Store = ArtifactStore().open()
    store.write_ref(before, "small", missing)  # as while the new policy's evaluation runs, or after it failed
    promotion = Promotion("small", override=True, reason="the demo is tomorrow", recipe=path)
    with pytest.raises(BadInput, match=r"has no (report|ifeval scores) \(it is of policy .*evaluate it first"):
        promote(promotion, print)
    monkeypatch.setattr("alignment_dags.registry.promote.check_evaluated", lambda *_: None)
    with pytest.raises(dg.Failure, match="evaluate it first"):  # what moves after the decision is seen too
        promote(promotion, print)
    assert version_with_tags()[0] == "1"


@pytest.mark.usefixtures("here")
def test_a_return_holds_until_there_is_another_policy(
    write: Write,
    finished: Callable[..., Upstream],
    bring_up_to_date: Callable[..., Upstream],
    align_process: Align,
    tmp_path: Path,
) -> None:
    first = finished(load_recipe(write(0.1)))("policy_checkpoint")
    path = write(0.9)
    second = bring_up_to_date(load_recipe(path))("policy_checkpoint")
    assert version_with_tags()[0] == "2"

    told = promote(Promotion("small", to="1", reason="it answers in riddles", recipe=path), print)
    assert told["decision"]["kind"] == "rollback"
    assert version_with_tags()[0] == "1"
    lineage = lineage_of("small")
    assert lineage["version"] == "1"
    assert lineage["registration"]["decision"]["reason"] == "it answers in riddles"
    assert lineage == lineage_of("small", "mlflow")
    page = tmp_path / "history.html"
    assert write_report(path, page, history=True)["versions"] == ["1", "2"]
    text = page.read_text(encoding="utf-8")
    assert "small: 2 registered versions" in text and "The champion is version 1, returned to on " in text
    rows = re.findall(r'<th scope="row" role="rowheader">([^<]*version[^<]*)<', text[text.index('id="versions"') :])
    assert rows == ["return to version 1", "version 2", "version 1"]

    launched: list[Any] = bring_up_to_date.launched  # type: ignore[attr-defined]
    launched.clear()
    bring_up_to_date(load_recipe(path))
    assert launched == [], "the night does not bring back what a person took back"
    registered_model_alone(load_recipe(path))
    assert version_with_tags()[0] == "1"

    third = bring_up_to_date(load_recipe(write(0.5)))
    assert third.store.commit_of(third("evaluation_report")).inputs["champion"].digest == first.digest
    assert version_with_tags()[0] == "3"

    with dg.DagsterInstance.get() as instance:
        taken = instance.event_log_storage.claim_concurrency_slot("local", "a training", "a step")
        assert taken.is_claimed
        code, _, error = align_process("promote", "small", "--to", "2", "--recipe", str(path))
        assert code == 0, error  # it waited for nobody's GPU
        instance.event_log_storage.free_concurrency_slots_for_run("a training")
    version, tags = version_with_tags()
    assert (version, tags["align.promoted_by"]) == ("2", "rollback")
    assert tags["align.policy_digest"] == second.digest
    promote(Promotion("small", to="3", recipe=path), print)
    assert version_with_tags()[0] == "3"


def test_a_registration_that_a_decision_overtook_is_refused(
    write: Write,
    finished: Callable[..., Upstream],
    bring_up_to_date: Callable[..., Upstream],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    finished(load_recipe(write(0.1)))
    path = write(0.9)

    def overtaken(work: Work, recipe: Recipe) -> str | None:
        promotion = Promotion("small", to="1", reason="not this one", recipe=path)
        write_decision(work.store, "small", decide(Workspace(recipe, load_pools(), lambda: work.store), promotion))
        return alias_moved(work, recipe)

    with monkeypatch.context() as patch:
        patch.setattr("assets.registered_model.alias_moved", overtaken)
        with pytest.raises(dg.Failure, match=r"not registered: .*decision changed while it was being registered"):
            bring_up_to_date(load_recipe(path))
    assert version_with_tags()[1]["align.promoted_by"] == "gate"
    bring_up_to_date(load_recipe(path))
    version, tags = version_with_tags()
    assert (version, tags["align.promoted_by"]) == ("1", "rollback"), "what the person said in between holds"


def test_registrations_of_a_recipe_wait_for_each_other(write: Write, bring_up_to_date: Callable[..., Upstream]) -> None:
    path = write(0.1)
    store: Store = ArtifactStore().open()
    bring_up_to_date(load_recipe(path), only=("base", "shards", "reference"))
    held: list[bool] = []
    write_ref = Store.write_ref

    def holding(self: Store, ref: Any, recipe: str, stage: str, partition: str | None = None) -> None:
        if stage == "registered_model":
            lock = FileLock(Path(store.path("locks", "small.registered_model.lock")), is_singleton=False)
            with pytest.raises(Timeout):
                lock.acquire(timeout=0)
            held.append(True)
        write_ref(self, ref, recipe, stage, partition)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "write_ref", holding)
        bring_up_to_date(load_recipe(path))
    assert held == [True], "up to the ref, which the next one follows"


@pytest.mark.usefixtures("here")
def test_a_registration_cut_short_after_mlflow_is_repaired_by_the_next(
    write: Write, bring_up_to_date: Callable[..., Upstream], monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_short(*_: Any) -> None:
        raise KeyboardInterrupt

    path = write(0.1)
    with monkeypatch.context() as patch:
        patch.setattr("assets.registered_model.record", cut_short)
        with pytest.raises(KeyboardInterrupt):
            bring_up_to_date(load_recipe(path))
    assert version_with_tags()[0] == "1"
    assert Upstream(ArtifactStore().open(), "small").get("registered_model") is None
    made = bring_up_to_date(load_recipe(path))
    commit = made.store.commit_of(made("registered_model"))
    assert commit.summary["version"] == "1"
    assert "alias_moved" not in commit.summary
    assert len(Tracking().client().search_model_versions("name = 'small'")) == 1
    assert version_with_tags()[1]["align.registration_key"] == commit.key


@pytest.mark.usefixtures("here")
def test_an_alias_that_somebody_moved_is_reported_and_put_back(
    write: Write, finished: Callable[..., Upstream], bring_up_to_date: Callable[..., Upstream]
) -> None:
    path = write(0.1)
    finished(load_recipe(path), load_recipe(write(0.9)))
    Tracking().client().set_registered_model_alias("small", "champion", "1")
    moved = "the alias champion of small is on version 1, the registered champion is version 2: somebody moved it"
    assert moved in lineage_of("small")["alias_moved"]
    assert lineage_of("small")["version"] == "2", "the store knows better"
    assert any(moved in line for line in lines(lineage_of("small")))
    from alignment_dags.cli.outcome import summary_of
    from alignment_dags.run.run import Outcome

    assert moved in summary_of(Outcome(Workspace(load_recipe(path), load_pools())))["alias"]

    made = bring_up_to_date(load_recipe(write(0.5)))
    assert moved in made.store.commit_of(made("registered_model")).summary["alias_moved"]
    assert version_with_tags()[0] == "3"
    assert lineage_of("small")["alias_moved"] is None

    Tracking().client().delete_registered_model_alias("small", "champion")
    assert "is gone, the registered champion is version 3" in lineage_of("small")["alias_moved"]
    told = promote(Promotion("small", to="3", recipe=path), print)
    assert "is gone" in told["alias_moved"]
    assert version_with_tags()[0] == "3"


@pytest.mark.usefixtures("here")
def test_what_cannot_be_promoted_is_refused_and_leaves_nothing_behind(
    write: Write, bring_up_to_date: Callable[..., Upstream], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(0.1)
    with pytest.raises(BadInput, match="has no policy yet"):
        promote(Promotion("small", to="1", recipe=path), print)
    bring_up_to_date(load_recipe(path))
    bring_up_to_date(load_recipe(write(0.9)))
    for promotion, told in (
        (Promotion("small", to="7", recipe=path), "no version '7'; versions: 1, 2"),
        (Promotion("small", recipe=path), "give either"),
        (Promotion("small", to="1", override=True, recipe=path), "give either"),
        (Promotion("large", to="1", recipe=path), "registers 'small', not 'large'"),
    ):
        with pytest.raises(BadInput, match=told):
            promote(promotion, print)

    def cut_short(*_: Any) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("alignment_dags.registry.promote._carry_out", cut_short)
        with pytest.raises(KeyboardInterrupt):
            promote(Promotion("small", to="1", recipe=path), print)
    registered_model_alone(load_recipe(path))
    assert version_with_tags()[0] == "2"

    store: Store = ArtifactStore().open()
    carry_out(store, plan_of(store, ["small"], everything=True, keep=0))
    with pytest.raises(BadInput, match=r"version 1 cannot come back: its weights were erased on"):
        promote(Promotion("small", to="1", recipe=path), print)
    bring_up_to_date(load_recipe(path))
    assert version_with_tags()[0] == "2"


def train_ids(store: Store, manifest: Artifact, shard: str) -> list[str]:
    rows = pq.read_table(store.fetch(manifest) / "split.parquet").to_pylist()
    return [row["row_id"] for row in rows if (row["shard"], row["split"]) == (shard, "train")]


@pytest.mark.usefixtures("here")
def test_a_version_that_learned_withdrawn_rows_does_not_come_back_and_whoever_looks_at_it_is_told(
    write: Write,
    finished: Callable[..., Upstream],
    bring_up_to_date: Callable[..., Upstream],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write(0.1)
    made = finished(load_recipe(path))
    store, policy, manifest = made.store, made("policy_checkpoint"), made("preference_manifest")
    one, other = sorted(name[len("shards.") :] for name in store.commit_of(manifest).inputs if "shards." in name)
    assert lineage_of("small")["withdrawn_since"] is None and collect([path])["kept"] == []
    withdraw(path, train_ids(store, manifest, one)[:2], [], "asked by mail")
    told = "2 of its rows were withdrawn since (align prefs withdraw)"
    named = f"kept: policy {policy.digest[:12]} (small version 1): it learned rows that were withdrawn; "
    assert promote(Promotion("small", to="1", recipe=path), print)["decision"] is None, "it is champion already"
    show_collected(collect([path], dry_run=True))
    page = capsys.readouterr().out
    assert f"{named}`align gc small --keep 0` erases it once it is not the champion\n" in page

    after = bring_up_to_date(load_recipe(path))
    assert version_with_tags()[0] == "2" and lineage_of("small")["withdrawn_since"] is None
    refused = rf"small version 1 cannot come back: {re.escape(told)}; restore the rows .*, or train again"
    with pytest.raises(BadInput, match=refused):
        promote(Promotion("small", to="1", recipe=path), print)
    lineage = lineage_of("small@1")
    assert lineage["withdrawn_since"] == {"rows": 2, "of_reference": 0, "told": told}
    assert lineage == lineage_of("small@1", "mlflow")
    assert "\n".join(lines(lineage)).count(told) == 1
    assert write_card("small@1", None)["text"].count(f"\n- {told}.\n") == 1
    show_exported(export("small@1", tmp_path / "exported", print))
    assert capsys.readouterr().out.count(told) == 1
    assert "withdrawn since" not in write_card("small", None)["text"]

    withdraw(path, [], [other], "")
    whole = len(train_ids(store, manifest, other))
    assert whole > 10 and lineage_of("small@1")["withdrawn_since"]["rows"] == whole + 2
    assert lineage_of("small@2")["withdrawn_since"]["rows"] == whole
    restore(path, [], [other])
    show_collected(collect([path]))
    page = capsys.readouterr().out
    assert f"{named}`align gc small --keep 0` erases it\n" in page and "(small version 2)" not in page
    gone = collect([path], keep=0)
    assert [item["key"] for item in gone["erased"] if item["kind"] == policy.kind] == [policy.key]
    assert gone["kept"] == []
    assert after("policy_checkpoint") != policy


@pytest.mark.usefixtures("tables")
def test_a_store_that_went_away_is_named_and_not_only_what_was_in_it(write: Write) -> None:
    gone = "nothing has been built here: if the artifact store .*/store was there before, put it back"
    with pytest.raises(dg.Failure, match=f"has not been built yet; {gone}"):
        registered_model_alone(load_recipe(write(0.1)))


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize(
    "error",
    [
        BadInput("no model here"),
        FileNotFoundError(2, "No such file", "no model here"),
        MissingArtifact("no model here"),
        CorruptArtifact("no model here"),
    ],
)
def test_a_store_that_goes_while_it_is_read_is_named_too(
    error: Exception, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: Any) -> NoReturn:
        raise error

    monkeypatch.setattr("assets.building.factory.Materializer._materialize", read)
    with pytest.raises(
        dg.Failure, match=r"no model here'?; nothing has been built here: if the artifact store"
    ) as told:
        registered_model_alone(load_recipe(write(0.1)))
    assert BAD_INPUT in told.value.metadata, "a person has to put it back"


@pytest.mark.usefixtures("tables")
def test_a_file_that_is_gone_is_told_without_the_secret_in_its_address(
    write: Write, finished: Callable[..., Upstream], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(write(0.1))
    finished(recipe)

    def read(*_: Any) -> NoReturn:
        raise FileNotFoundError("https://data.example/pairs.jsonl?token=hush")

    monkeypatch.setattr("assets.building.factory.Materializer._materialize", read)
    with pytest.raises(dg.Failure, match=r"data\.example/pairs\.jsonl") as told:
        registered_model_alone(recipe)
    assert "hush" not in str(told.value) and told.value.__cause__ is None


@pytest.mark.parametrize("tampering", ["no report", "an older report", "another policy", "replaced weights"])
def test_registering_alone_is_refused_whatever_stands_behind_it(
    tampering: str, write: Write, finished: Callable[..., Upstream]
) -> None:
    path = write(0.1)
    recipe = load_recipe(path)
    upstream = finished(recipe)
    old = upstream.ref("policy_checkpoint")
    assert old is not None
    told = "the report is about policy"
    if tampering == "no report":
        upstream.store.fs.rm(upstream.store.ref_path("small", "evaluation_report"))
        told = "evaluation_report has not been built yet"
    elif tampering in ("an older report", "another policy"):
        recipe = load_recipe(write(0.9))
        names = (
            ["policy_checkpoint"]
            if tampering == "an older report"
            else [node.name for node in Workspace(recipe, load_pools()).phase("train").nodes]
        )
        assets = [build_asset(node, recipe, load_pools()) for node in nodes_of(recipe, load_pools())]
        with dg.DagsterInstance.get() as instance:
            dg.materialize(
                assets,
                instance=instance,
                resources=asset_resources(),
                selection=[asset_key("small", name) for name in names],
            )
        if tampering == "another policy":
            upstream.store.write_ref(old, "small", "policy_checkpoint")
    else:
        Tracking().client().delete_registered_model("small")
        folder = Path(upstream.store.path("registered_model", upstream("registered_model").key))
        (folder / "_COMMIT.json").unlink()
        (folder.parents[1] / "refs" / "small" / "registered_model.json").unlink()
        weights = upstream.store.fetch(upstream("policy_checkpoint")) / "model.safetensors"
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(data)
        told = r"model\.safetensors: sha256"
    before = Tracking().aliased("small")
    with pytest.raises(dg.Failure, match=told):
        registered_model_alone(recipe)
    if tampering == "another policy":
        assert before is not None
        assert version_with_tags()[0] == "2"
    else:
        assert Tracking().aliased("small") == before
