"""A stage: a pure program from a JSON request to an artifact, and the summaries that stages read of each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from alignment.address import bare
from alignment.data.statistics import Finding, LogpNumbers, PairNumbers, findings
from alignment.digest import json_digest
from alignment.recipe.data import Keyed
from alignment.store import Artifact, Commit, Store, Summary


class SourceFile(BaseModel):
    """A file outside the store, pinned by content. Where it lies does not count in a key; what it holds does.

    The URL is bare, as requests are kept in artifacts; `alignment.address.whole` opens it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: Annotated[str, AfterValidator(bare)]
    sha256: str
    size: int

    def identity(self) -> dict[str, str]:
        """Its content and how it is read, wherever it lies."""
        suffixes = PurePosixPath(self.url).suffixes
        format = "".join(suffixes[-2:] if suffixes[-1:] == [".gz"] else suffixes[-1:])
        return {"format": format.lower(), "sha256": self.sha256}


class Request(Keyed):
    """Everything a stage's result depends on, and nothing else (launcher and pool are not in it)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def identity(self) -> Any:
        """The request as a plain value in which artifacts and files stand for their content."""
        return _identity(self)

    def artifacts(self) -> dict[str, Artifact]:
        """Every pinned artifact in the request, under the path of the field that holds it."""
        return {path: value for path, value in _pinned(self, "") if isinstance(value, Artifact)}

    def source_files(self) -> list[SourceFile]:
        """Every file outside the store that the request pins."""
        return [value for _, value in _pinned(self, "") if isinstance(value, SourceFile)]


R = TypeVar("R", bound=Request)


@dataclass(frozen=True)
class Result:
    """What a stage says of what it wrote: its data version, and its summary (of a stage without a class for it, plain
    JSON)."""

    digest: str
    summary: Summary | dict[str, Any] = field(default_factory=dict)

    @property
    def recorded(self) -> dict[str, Any]:
        """The summary as the commit record keeps it."""
        return self.summary.recorded() if isinstance(self.summary, Summary) else self.summary


@dataclass(frozen=True)
class Context:
    """What a running stage may touch.

    `out` is an empty folder: what is in it at the end is the artifact (rank 0's; other ranks' is thrown
    away). `work` keeps resumable state over interruptions and is cleared after the commit.
    """

    store: Store
    out: Path
    work: Path
    rank: int = 0
    world_size: int = 1

    def fetch(self, artifact: Artifact) -> Path:
        """A folder with an input's files, each compared with its committed sha256: nothing is made of damaged ones."""
        return self.store.fetch(artifact, deep="once")

    def runs_code(self, checkpoint: Artifact) -> bool:
        """Whether the model's own Python files may run: a checkpoint's commit record says so, and names them."""
        return CheckpointSummary.of(self.store.commit_of(checkpoint)).may_run_code


@dataclass(frozen=True)
class Stage(Generic[R]):
    """`run` fills `context.out` from the request. `code_version` is raised when results can change.

    `device` says what a miss needs: "gpu" stages go through a launcher, "cpu" ones run where they are. `elastic` says
    that its ranks share work of which each part is kept as it is done: their number may change while it runs.
    """

    name: str
    code_version: int
    request: type[R]
    run: Callable[[R, Context], Result]
    device: Literal["cpu", "gpu"] = "cpu"
    kind: str = ""
    elastic: bool = False

    def __post_init__(self) -> None:
        if not self.kind:
            object.__setattr__(self, "kind", self.name)

    def key(self, request: R) -> str:
        """40 hex digits over stage, code version and the request's identity."""
        return json_digest({"stage": self.name, "code_version": self.code_version, "request": request.identity()})[:40]


# Summaries with readers that must not reach the stage's own code: other stages, reports, MLflow's model files.

Number = int | float | None
"""A number as it was recorded; None stands for one that is not finite."""


class AdapterSummary(BaseModel):
    """An adapter in PEFT's format: `base` is the source, or the digest, of the checkpoint that it goes on top of, whose
    linear layers were quantised so where `quantise` says it."""

    base: str
    revision: str | None = None
    base_digest: str
    rank: int
    alpha: int
    parameters: int
    quantise: str | None = Field(default=None, exclude_if=lambda value: value is None)


class OriginSummary(Summary):
    """What any checkpoint's record says of where it came from; nothing of one that was trained here."""

    source: dict[str, Any] | None = Field(default=None, validation_alias="from", serialization_alias="from")


class CheckpointSummary(Summary):
    """What every stage that makes a checkpoint says of it."""

    weights_digest: str | None = None
    config_digest: str | None = None
    tokenizer_digest: str | None = None
    end_ids: list[int] | None = None
    """Token ids that end an answer; null in a record of a version that did not say."""
    rope_by_length: bool | None = None
    """Whether positions turn by the longest sequence of a pass."""
    parameters: int | None = None
    architecture: str | None = None
    vocab_size: int | None = None
    max_positions: int | None = None
    has_chat_template: bool | None = None
    template_ends_answers: bool | None = None
    """Whether the chat template puts an end behind an answer; null where that is not known."""
    runs_code: dict[str, str] | None = None
    """File to SHA-256 of the model's own code, where it may run. Never set where it may not."""
    adapter: AdapterSummary | None = None
    """The adapter that is kept beside the weights, which it is merged into; set only where one is."""

    @property
    def may_run_code(self) -> bool:
        """Whether the model's own Python files may run."""
        return self.runs_code is not None


class PolicySummary(CheckpointSummary):
    """What `policy_checkpoint` says: `tokens` went through the model, `history` has one record a logged step."""

    steps: int | None = None
    tokens: int | None = None
    first_loss: Number = None
    held_out: dict[str, Number] = Field(default_factory=dict)
    agreement: dict[str, Number] = Field(default_factory=dict)
    rows_per_rank: list[int] = Field(default_factory=list)
    resumed_from_step: int | None = None
    stopped_by: str | None = None
    """The condition of the recipe's `stop` that ended the training; null if it trained to its end."""
    kept: str | None = None
    """Which of the candidates (`keep_steps`) the policy is, in words; not set where it is the last step's anyway."""
    kept_step: int | None = None
    history: list[dict[str, Number]] = Field(default_factory=list)
    rows_trained: int | None = None
    rows_held_out: int | None = None
    rows_dropped: dict[str, int] = Field(default_factory=dict)
    sft_rows: int | None = None
    """Demonstrations that steps took some of, where the recipe mixes them in."""
    sft_rows_dropped: dict[str, int] = Field(default_factory=dict)
    merged: dict[str, float] = Field(default_factory=dict)
    """The parts of a weighted average, by name, with their weights; empty for a policy that is none."""
    rollouts: dict[str, Number] = Field(default_factory=dict)
    """Of an on-policy training: `answers` that were sampled since it last started, `unscored` ones among them, the
    share of prompts whose answers all scored the same (`equal_scores`), and the mean score at the first and the last
    record (`first_score`, `last_score`). `rows_trained` are its prompts then, and `rows_dropped` those set aside."""


POLICY = "policy_checkpoint"
"""The kind of a policy's artifacts."""
POLICY_LOGPROBS = "policy_logprobs"
"""The kind of log-probs that are of several shards, under a policy."""


def starts_of(commit_of: Callable[[Artifact], Commit], policy: Commit) -> list[Commit]:
    """The checkpoint that a policy was trained from, what that one was trained from where it is a policy too, and so
    on; the last is an SFT checkpoint or a base model."""
    starts = [commit_of(policy.inputs["checkpoint"])]
    while starts[-1].kind == POLICY:
        starts.append(commit_of(starts[-1].inputs["checkpoint"]))
    return starts


def trainings_of(commit_of: Callable[[Artifact], Commit], policy: Commit) -> Iterator[Commit]:
    """A policy, and every policy that its weights came from: links and rounds before it, parts of an average."""
    yield policy
    for name, artifact in policy.inputs.items():
        if artifact.kind == POLICY and (name == "checkpoint" or name.startswith("parts.")):
            yield from trainings_of(commit_of, commit_of(artifact))


def first_training(commit_of: Callable[[Artifact], Commit], policy: Artifact) -> Commit:
    """The first of the trainings that a policy is the result of: a chain has several."""
    commit = commit_of(policy)
    return [commit, *(start for start in starts_of(commit_of, commit) if start.kind == POLICY)][-1]


def first_manifest(commit_of: Callable[[Artifact], Commit], policy: Artifact) -> Artifact:
    """The manifest that the first training of a policy stood on; later links of a chain may have a part of it."""
    return first_training(commit_of, policy).inputs["manifest"]


def scored_by(commit_of: Callable[[Artifact], Commit], manifest: Artifact) -> Artifact | None:
    """The policy that a manifest's reference log-probs are of; None where they are of the start checkpoint."""
    references = (artifact for name, artifact in commit_of(manifest).inputs.items() if name.startswith("references."))
    scored = next(references, None)
    if scored is None or scored.kind != POLICY_LOGPROBS:
        return None
    return commit_of(scored).inputs["checkpoint"]


def began_with(commit_of: Callable[[Artifact], Commit], checkpoint: Artifact) -> Artifact:
    """Where training began that led to a checkpoint: itself, unless it is a policy."""
    return starts_of(commit_of, commit_of(checkpoint))[-1].artifact if checkpoint.kind == POLICY else checkpoint


def trained_policy(commit_of: Callable[[Artifact], Commit], policy: Commit) -> Commit:
    """The policy that training made: itself, or of a merged one that which it was averaged from."""
    return commit_of(policy.inputs["checkpoint"]) if PolicySummary.of(policy).merged else policy


class SftSummary(CheckpointSummary):
    """`tokens` went through the model, `history` has one record a logged step. Of an adopted checkpoint `source` says
    where it came from, and all counts are 0."""

    steps: int | None = None
    rows_trained: int | None = None
    rows_held_out: int | None = None
    rows_dropped: int | None = None
    dropped: dict[str, int] = Field(default_factory=dict)
    tokens: int | None = None
    train_loss: Number = None
    held_out_loss: Number = None
    best_step: int | None = None
    stopped_early: bool | None = None
    rows_per_rank: list[int] = Field(default_factory=list)
    resumed_from_step: int | None = None
    history: list[dict[str, Number]] = Field(default_factory=list)
    adopted: bool = False
    source: dict[str, Any] | None = Field(default=None, validation_alias="from", serialization_alias="from")


class ShardSummary(Summary):
    """What `preference_shard` says: rows that are valid, and how many of the source's are not, by reason."""

    rows: int
    quarantined: int | None = None
    reasons: dict[str, int] = Field(default_factory=dict)
    kind: Literal["paired", "unpaired"]
    source_rows: int | None = None
    duplicates: int | None = None
    digest: str | None = None
    withdrawn: int | None = None
    """Records that were left out as somebody withdrew them; not set where the request names none."""
    forms: dict[str, int] = Field(default_factory=dict)
    """Rows of each form of `alignment.data.forms`, those that `max_rows` leaves out among them."""
    not_drawn: int | None = None
    """Valid rows beyond `max_rows`; not set where the recipe sets none."""
    pairs: PairNumbers | None = None
    contradictory: int | None = None
    """Rows of the shard that contradict another row of it."""

    def findings(self) -> list[Finding]:
        """What the numbers say of the data; nothing for a record of an earlier version."""
        return findings(self.pairs, None if self.contradictory is None else (self.contradictory, self.rows))


class ManifestSummary(Summary):
    """Rows of the pinned shards: `train`, `held_out`, and `dropped` for `reasons`; shards `left_out`, and why.

    `fingerprint` is that of the reference behind the log-probs, None without a reference.
    """

    rows: int | None = None
    train: int | None = None
    held_out: int | None = None
    dropped: int | None = None
    reasons: dict[str, int] = Field(default_factory=dict)
    kind: Literal["paired", "unpaired"] | None = None
    shards: int | None = None
    left_out: dict[str, str] = Field(default_factory=dict)
    fingerprint: str | None = None
    pairs: PairNumbers | None = None
    """Lengths and scores of all valid pairs of the shards; None for unpaired rows."""
    contradictory: int | None = None
    """Rows among train and held out that contradict another one of them."""
    reference_logps: LogpNumbers | None = None
    """Of all scored pairs of the shards; None without a reference."""

    def findings(self, pairs_of: Mapping[str, PairNumbers] | None = None) -> list[Finding]:
        """What the numbers say of the data, with those of each of several named sources in `pairs_of`; nothing for a
        record of an earlier version."""
        kept = (self.train or 0) + (self.held_out or 0)
        contradictory = None if self.contradictory is None else (self.contradictory, kept)
        return findings(self.pairs, contradictory, self.reference_logps, pairs_of=pairs_of or {})


class ReferenceSummary(Summary):
    """What `reference_logprobs` says: `scored` sequences with their `tokens` went through the model, `cache_hits` did
    not. How fast it was is told only where something was scored."""

    rows: int | None = None
    dropped: dict[str, int] = Field(default_factory=dict)
    sequences: int | None = None
    cache_hits: int | None = None
    scored: int | None = None
    tokens: int | None = None
    forwarded_tokens: Number = None
    tokens_per_second: Number = None
    padding_waste: Number = None
    useful_tflops_per_second: Number = None
    mfu: Number = None
    forwarded_per_rank: list[int] = Field(default_factory=list)
    """Of `forwarded_tokens`, where several processes shared them."""
    fingerprint: str | None = None
    logps: LogpNumbers | None = None
    """Log-probs a token of the scored pairs; None in a record of an earlier version and where nothing was scored."""


def _identity(value: Any) -> Any:
    if isinstance(value, Artifact | SourceFile):
        return value.identity()
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        speed_only, absent = (value.speed_only, value.absent_by_default) if isinstance(value, Keyed) else ((), ())
        identity = {name: _identity(getattr(value, name)) for name in fields if name not in speed_only}
        # a section that differs from its default in speed alone is as if it were the default
        return {
            name: one for name, one in identity.items() if name not in absent or one != _identity(fields[name].default)
        }
    if isinstance(value, dict):
        return {str(name): _identity(item) for name, item in value.items()}
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, list | tuple):
        return [_identity(item) for item in value]
    return value


def _pinned(value: Any, path: str) -> Iterator[tuple[str, Artifact | SourceFile]]:
    if isinstance(value, Artifact | SourceFile):
        yield path, value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _pinned(getattr(value, name), f"{path}.{name}" if path else name)
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _pinned(item, f"{path}.{name}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _pinned(item, f"{path}.{index}")
