"""`registered_model`: the policy as an MLflow model version, if the gate passes it when it is asked again."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote

import dagster as dg
import yaml

from alignment.digest import json_digest
from alignment.errors import BadInput
from alignment.recipe.evaluation import Gate
from alignment.recipe.recipe import Recipe
from alignment.stages.execute import REQUEST_FILE, execute
from alignment.stages.stage import Context, PolicySummary, Request, Result, Stage
from alignment.stages.usage import Usage
from alignment.store import Artifact, Commit, CorruptArtifact, MissingArtifact, Store
from assets.building.factory import flat, numbers, run_stage
from assets.building.node import Node, Shown, Work
from assets.building.show import code
from assets.building.upstream import Upstream
from assets.card import CARD_FILE, card_of
from assets.card_text import description_of
from assets.champion import champion_for, check_evaluated, moved_by_hand, registered_champion, scores_of
from assets.policy_divergence import pool_of
from assets.publication import publish_model
from assets.registration import Decision, RegistrationSummary, decision_for, decision_of
from eval.gate.default import gate_of
from eval.gate.evidence import recompute
from eval.gate.scores import WrongEvidence
from eval.stages.checkpoint_check import STAGE as CHECK
from eval.stages.checkpoint_check import CheckRequest, CheckSummary
from resources.alerts import Alert, send
from resources.mlflow import REGISTRATION_TAG, Tracking
from resources.mlflow_runs import Report
from resources.pools import Pools

REGISTRATION = "registration.json"
log = logging.getLogger(__name__)


class RegistrationRequest(Request):
    """The inputs of a registration. Later candidates find the champion in them.

    `decision` is that of the person who promoted this policy; None leaves the decision to the gate. `sharded` cuts the
    model that is checked over the processes of its launch, where there are several.
    """

    speed_only: ClassVar[frozenset[str]] = frozenset({"sharded"})
    absent_by_default: ClassVar[frozenset[str]] = frozenset({"decision"})

    policy: Artifact
    report: Artifact
    scores: dict[str, Artifact]
    previous: Artifact | None
    gate: Gate | None
    model_name: str
    smoke_prompt: str
    precision: str
    sharded: bool = False
    decision: Decision | None = None


def refuse(request: RegistrationRequest, context: Context) -> Result:
    """Refuses to run by hand: this stage changes MLflow, and depends on the champion at that moment."""
    raise BadInput(
        "registered_model is not made by hand: `align run RECIPE` (or its asset in Dagster) asks the gate and"
        " registers; `align promote MODEL` registers a version that a person chooses"
    )


STAGE = Stage(name="registered_model", code_version=1, request=RegistrationRequest, run=refuse)


def registered_model(recipe: Recipe, pools: Pools) -> Node:
    """The node of the registered model version."""

    def request(upstream: Upstream, shard: str | None) -> RegistrationRequest:
        candidate = upstream("policy_checkpoint")
        decision = decision_for(upstream, candidate)
        registration = RegistrationRequest(
            policy=candidate,
            report=upstream("evaluation_report"),
            scores={suite: upstream(f"policy_evals/{suite}") for suite in recipe.evals.selected()},
            previous=champion_for(upstream, candidate).registration,
            gate=gate_of(recipe),
            model_name=recipe.model_name,
            smoke_prompt=recipe.registry.smoke_prompt,
            precision=recipe.evals.precision,
            sharded=recipe.evals.sharded,
        )
        return registration if decision is None else decided_request(upstream, registration, decision)

    def make(work: Work) -> Commit:
        assert isinstance(work.request, RegistrationRequest)
        decision = work.request.decision
        if work.request.gate is None and decision is None:
            return record(work, RegistrationSummary(registered=False, why="gate: none registers nothing"))
        what: dict[str, Any] = {"registered": True, "model": recipe.model_name, "recipe": recipe_text(recipe)}
        if decision is None:
            ask_the_gate(work)
        else:
            check_evaluated(work.store, work.request.policy, work.request.report, work.request.scores)
            what |= {"decision": decision, "gate": overruled_verdict(work)}
        if moved := alias_moved(work, recipe):
            what["alias_moved"] = moved
        if decision is None or decision.kind == "override":
            what["said"] = smoke_answer(work, work.request)
        check_unchanged(work, request(Upstream(work.store, recipe.name), None))
        return record(work, RegistrationSummary(**what, version=register(work, recipe)))

    def published(store: Store, tracking: Tracking, commit: Commit) -> None:
        if RegistrationSummary.of(commit).registered:
            publish(store, tracking, commit)
            hand_over(store, tracking, commit, recipe)

    return Node(
        name="registered_model",
        phase="train",
        stage=STAGE,
        description="The MLflow model version with the alias champion; needs a passing verdict for this very policy,"
        " or a person who promotes it by name and is recorded.",
        kinds=frozenset({"mlflow"}),
        needs=(
            "evaluation_report",
            "policy_checkpoint",
            *(f"policy_evals/{suite}" for suite in recipe.evals.selected()),
        ),
        request=request,
        show=show,
        make=make,
        pool=pool_of(recipe),
        publish=published,
        alone=True,
    )


def show(commit: Commit, folder: Path) -> Shown:
    """The version with its page in MLflow, and the recipe's text."""
    summary = RegistrationSummary.of(commit)
    if not summary.registered:
        return Shown(first=("why",))
    model, version = summary.model_version
    return Shown(
        first=("version", "model"),
        pages={"model_version": f"models/{quote(model, safe='')}/versions/{version}"},
        markdown={"recipe": code(summary.recipe, "yaml")} if summary.recipe else {},
    )


def decided_request(upstream: Upstream, registration: RegistrationRequest, decision: Decision) -> RegistrationRequest:
    """The registration request that carries out a decision; the same one when it is built again afterwards."""
    latest = upstream.get("registered_model")
    commit = None if latest is None else upstream.store.commit_of(latest)
    if commit is not None and decision_of(commit) == decision:
        previous = commit.inputs.get("previous")
    else:
        previous = registered_champion(upstream.store, latest).registration
    changed: dict[str, Any] = {"previous": previous, "decision": decision}
    if decision.registration is not None:
        target = upstream.store.commit_of(decision.registration)
        inputs = target.inputs
        changed |= {"policy": inputs["policy"], "report": inputs["report"], "scores": scores_of(target)}
    return registration.model_copy(update=changed)


def recipe_text(recipe: Recipe) -> str:
    """The recipe as it was written, as YAML; its variables are not filled in."""
    return yaml.safe_dump(recipe.written, sort_keys=False, allow_unicode=True)


def overruled_verdict(work: Work) -> str:
    """The gate's verdict that a person overruled, for the record."""
    assert isinstance(work.request, RegistrationRequest)
    try:
        verdict = recompute(work.store, work.request.report, work.request.policy)
    except (WrongEvidence, CorruptArtifact, MissingArtifact) as error:
        return f"could not be asked: {error}"
    return f"{verdict.outcome}: {'; '.join(verdict.reasons)}"


def alias_moved(work: Work, recipe: Recipe) -> str | None:
    """A message if the alias was moved by hand, before it is set again; also logged."""
    ref = work.store.read_ref(recipe.name, "registered_model")
    latest, key = None if ref is None else ref.artifact, work.stage.key(work.request)
    problem = moved_by_hand(work.store, work.tracking, recipe.model_name, latest, key)
    if problem is not None:
        work.context.log.warning(problem)
    return problem


def ask_the_gate(work: Work) -> None:
    """Computes the verdict again from the pinned samples. Unlike a blocking asset check, it cannot be skipped.

    The policy's files are hashed again too, so that the registered weights are those that answered.
    """
    assert isinstance(work.request, RegistrationRequest)
    try:
        work.store.fetch(work.request.policy, deep=True)
        verdict = recompute(work.store, work.request.report, work.request.policy, work.request.gate)
    except (WrongEvidence, CorruptArtifact) as error:
        raise dg.Failure(f"not registered: {error}", allow_retries=False) from error
    check_compared_champion(work)
    if verdict.outcome != "pass":
        reasons = "; ".join(verdict.reasons)
        raise dg.Failure(
            f"not registered, the gate says {verdict.outcome}: {reasons}",
            metadata={"verdict": verdict.outcome, "reasons": reasons},
            allow_retries=False,
        )


def check_compared_champion(work: Work) -> None:
    """Fails if the report compared the policy with another champion than the current one."""
    assert isinstance(work.request, RegistrationRequest)
    compared = work.store.commit_of(work.request.report).inputs.get("champion")
    champion = registered_champion(work.store, work.request.previous)
    if (compared and compared.digest) != (champion.policy and champion.policy.digest):
        now = (
            "there is no champion now"
            if champion.version is None
            else f"the champion is now version {champion.version}"
        )
        raise dg.Failure(
            f"not registered: the report compared it with another champion, and {now}; run it again",
            allow_retries=False,
        )


def check_unchanged(work: Work, now: RegistrationRequest) -> None:
    """The last check: another machine on a remote store, or a person's decision, may have changed the request."""
    if work.stage.key(now) == work.stage.key(work.request):
        return
    before = work.request.model_dump()
    changed = [name for name, value in now.model_dump().items() if value != before.get(name)]
    raise dg.Failure(
        f"not registered: {', '.join(changed) or 'decision'} changed while it was being registered; run it again",
        allow_retries=False,
    )


def smoke_answer(work: Work, request: RegistrationRequest) -> str:
    """The answer to the smoke prompt of the checkpoint, loaded from the store."""
    if work.pool is None:  # a rollback whose decision no longer applies since it was launched
        raise dg.Failure("not registered: the decision no longer applies", allow_retries=False)
    check = CheckRequest(
        checkpoint=request.policy,
        prompt=request.smoke_prompt,
        precision=request.precision,
        sharded=request.sharded,
    )
    commit = run_stage(replace(work, stage=CHECK, request=check))
    return CheckSummary.of(commit).answer


def publish(store: Store, tracking: Tracking, commit: Commit) -> None:
    """Copies files to MLflow for a version that has none yet, or whose copy was interrupted."""
    model, version = RegistrationSummary.of(commit).model_version
    policy = commit.inputs["policy"]
    if not tracking.publish(model, version, store.commit_of(policy), lambda: store.fetch(policy, deep=True)):
        log.warning("MLflow has no version %s of %s: `align promote` registers another", version, model)


def hand_over(store: Store, tracking: Tracking, commit: Commit, recipe: Recipe) -> None:
    """Puts the card on the version's page in MLflow, and publishes the version where the recipe says so.

    The version is champion by now, so what fails here is an alert (`not_published`), and `align publish` repeats it.
    """
    model, version = RegistrationSummary.of(commit).model_version
    try:
        card = card_of(store, commit, recipe.written)
    except (CorruptArtifact, MissingArtifact) as error:  # records that were lost since it was registered
        log.warning("%s version %s has no card: %s", model, version, error)
        return
    tracking.describe(model, version, description_of(card.about), {CARD_FILE: card.text}, commit.inputs["report"].key)
    if recipe.publish is None:
        return
    try:
        outcome = publish_model(store, commit, recipe.publish, recipe.written)
    except Exception as error:  # of the hub, the network or a disk: a champion stays one without it
        first = (str(error).strip() or "no reason given").splitlines()[0]
        problem = (
            f"{model} version {version} was registered and not published: {first}; `align publish {model}` repeats it"
        )
        send(recipe.alerts, Alert(recipe.name, "not_published", problem))
        return
    log.info("%s version %s: %s", model, version, outcome.withheld or f"published to {outcome.place}")


def register(work: Work, recipe: Recipe) -> str:
    """Registers the policy in MLflow with the alias `champion`; returns the version."""
    assert isinstance(work.request, RegistrationRequest)
    decision, policy, store = work.request.decision, work.request.policy, work.store
    tags = {
        "align.promoted_by": "gate" if decision is None else decision.kind,
        "align.promotion": "the gate passed it" if decision is None else decision.description,
        "align.uri": store.uri(policy),
        "align.policy": policy.model_dump_json(),
        "align.report": work.request.report.model_dump_json(),
        REGISTRATION_TAG: work.stage.key(work.request),
    }
    commit = store.commit_of(policy)

    def lost() -> Report:
        asked = json.loads(store.read(policy, REQUEST_FILE))
        return Report(
            recipe=recipe.name,
            asset=policy.kind,
            partition=None,
            commit=commit,
            uri=store.uri(policy),
            params=dict(flat(asked)),
            metrics=numbers(commit.summary) | Usage.of(commit).numbers(),
            dagster_run_id=work.context.run.run_id,
            history=list(PolicySummary.of(commit).history),
            checkpoint=True,
            experiment=recipe.experiment,
        )

    return work.tracking.register(
        recipe.name, recipe.model_name, commit, tags, lambda: store.fetch(policy, deep=True), lost
    )


def record(work: Work, summary: RegistrationSummary) -> Commit:
    """Commits the registration, so that the store alone knows the champion.

    Its data version is the model version and a digest of the registration before it: to promote A, B and A again is
    three registrations.
    """
    assert isinstance(work.request, RegistrationRequest)
    previous = work.request.previous.digest if work.request.previous else None
    mark = json_digest([work.request.policy.digest, previous])[:8]

    def run(request: RegistrationRequest, context: Context) -> Result:
        (context.out / REGISTRATION).write_text(
            json.dumps(summary.recorded(), indent=1, sort_keys=True), encoding="utf-8"
        )
        return Result(digest=f"{summary.version or 'none'}.{mark}", summary=summary)

    return execute(replace(work.stage, run=run), work.request, work.store)
