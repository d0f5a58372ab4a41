"""`registered_model`: the policy as an MLflow model version, if the gate, asked again, says so."""

from __future__ import annotations

import json
from dataclasses import replace

import dagster as dg

from alignment.artifacts import Artifact, Commit, CorruptArtifact
from alignment.digest import json_digest
from alignment.recipe import Gate, Recipe
from alignment.stages import Context, Request, Result, Stage, execute
from assets.champion import champion_beside
from assets.node import Node, Work, run_stage
from assets.upstream import Upstream
from eval.check import STAGE as CHECK
from eval.check import CheckRequest
from eval.default_gate import gate_of
from eval.evidence import WrongEvidence
from eval.gate import recompute
from resources.pools import Pools

REGISTRATION = "registration.json"


class RegistrationRequest(Request):
    """What a registration stands on. Its inputs name the champion for the candidates that follow."""

    policy: Artifact
    report: Artifact
    scores: dict[str, Artifact]
    previous: Artifact | None
    gate: Gate | None
    model_name: str
    smoke_prompt: str
    precision: str


def refuse(request: RegistrationRequest, context: Context) -> Result:
    raise dg.Failure("a model is registered only by its asset, which asks the gate first", allow_retries=False)


STAGE = Stage(name="registered_model", code_version=1, request=RegistrationRequest, run=refuse)


def registered_model(recipe: Recipe, pools: Pools) -> Node:
    def request(upstream: Upstream, shard: str | None) -> RegistrationRequest:
        return RegistrationRequest(
            policy=upstream("policy_checkpoint"),
            report=upstream("evaluation_report"),
            scores={suite: upstream(f"policy_evals/{suite}") for suite in recipe.evals.selected()},
            previous=champion_beside(upstream, upstream("policy_checkpoint")).registration,
            gate=gate_of(recipe),
            model_name=recipe.model_name,
            smoke_prompt=recipe.registry.smoke_prompt,
            precision=recipe.evals.precision,
        )

    def make(work: Work) -> Commit:
        assert isinstance(work.request, RegistrationRequest)
        if work.request.gate is None:
            return record(work, {"registered": False, "why": "gate: none registers nothing"})
        ask_the_gate(work)
        answer = generates(work, work.request)
        version = register(work, recipe)
        return record(work, {"registered": True, "model": recipe.model_name, "version": version, "said": answer})

    return Node(
        name="registered_model",
        stage=STAGE,
        description="The MLflow model version with the alias champion; needs a passing verdict for this very policy.",
        kinds=frozenset({"mlflow"}),
        needs=(
            "evaluation_report",
            "policy_checkpoint",
            *(f"policy_evals/{suite}" for suite in recipe.evals.selected()),
        ),
        request=request,
        make=make,
        pool=recipe.pools.responses,
    )


def ask_the_gate(work: Work) -> None:
    """Decides again from the pinned samples; a blocking check can be walked around, this cannot."""
    assert isinstance(work.request, RegistrationRequest)
    try:
        verdict = recompute(work.store, work.request.report, work.request.policy, work.request.gate)
    except (WrongEvidence, CorruptArtifact) as error:
        raise dg.Failure(f"not registered: {error}", allow_retries=False) from error
    if verdict.outcome != "pass":
        reasons = "; ".join(verdict.reasons)
        raise dg.Failure(
            f"not registered, the gate says {verdict.outcome}: {reasons}",
            metadata={"verdict": verdict.outcome, "reasons": reasons},
            allow_retries=False,
        )


def generates(work: Work, request: RegistrationRequest) -> str:
    """What the checkpoint, loaded back from the store, answers to the smoke prompt."""
    check = CheckRequest(checkpoint=request.policy, prompt=request.smoke_prompt, precision=request.precision)
    commit = run_stage(replace(work, stage=CHECK, request=check))
    return str(commit.summary["answer"])


def register(work: Work, recipe: Recipe) -> str:
    assert isinstance(work.request, RegistrationRequest)
    tags = {
        "align.uri": work.store.uri(work.request.policy),
        "align.policy": work.request.policy.model_dump_json(),
        "align.report": work.request.report.model_dump_json(),
        "align.registration_key": work.stage.key(work.request),
    }
    return work.tracking.register(recipe.name, recipe.model_name, work.store.commit_of(work.request.policy), tags)


def record(work: Work, what: dict[str, object]) -> Commit:
    """Commits the registration, so that the store alone knows the champion.

    Its data version is the model version and a mark of what it follows: promoting A, B and A again are three
    registrations of two versions.
    """
    assert isinstance(work.request, RegistrationRequest)
    previous = work.request.previous.digest if work.request.previous else None
    mark = json_digest([work.request.policy.digest, previous])[:8]

    def run(request: RegistrationRequest, context: Context) -> Result:
        (context.out / REGISTRATION).write_text(json.dumps(what, indent=1, sort_keys=True), encoding="utf-8")
        return Result(digest=f"{what.get('version', 'none')}.{mark}", summary=what)

    return execute(replace(work.stage, run=run), work.request, work.store)
