"""Stage `policy_divergence`: how far the policy has moved from its SFT checkpoint, as KL(policy ‖ SFT) on prompts.

One completion a prompt is drawn from the policy as it is (temperature 1), and both models say how likely it was:
the mean of log π(y|x) − log π_SFT(y|x) is an unbiased estimate of the divergence in nats a response (Schulman 2020,
"Approximating KL divergence", k1). His k3, exp(−r) − 1 + r, varies less where single tokens are compared; over a whole
response exp(−r) has so heavy a tail that its spread says nothing of its error, and an interval is what we want.

A response ends at `MOST_NEW_TOKENS` at the latest, so it is the divergence of responses cut there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from alignment.data.manifest import SPLIT_FILE, read_manifest
from alignment.data.rows import ROWS_FILE, Content, decode, write_records
from alignment.data.tokens import TokenSequence
from alignment.digest import json_digest
from alignment.generation.generator import Generator, Sampling, as_trained
from alignment.logprobs.effort import Ranks
from alignment.logprobs.scorer import free_memory, require_finite, score
from alignment.models.checkpoint import load_model, load_tokenizer
from alignment.models.loading import load_sharded
from alignment.recipe.forward import TokenPolicy
from alignment.stages.stage import Context, Request, Result, Stage
from alignment.store import Artifact, CorruptArtifact
from eval.gate.held_out import read_held_out
from eval.statistics import Interval, clustered_mean, mean_interval, ratio_interval
from eval.summaries import DivergenceSummary

if TYPE_CHECKING:
    from transformers import PreTrainedModel


# The prompts of held-out pairs, read from the shards that hold them.


@dataclass(frozen=True)
class HeldOutPrompt:
    """A prompt, and the held-out row that it comes from."""

    row_id: str
    content: Content


def held_out_prompts(context: Context, policy: Artifact, manifest: Artifact, most: int) -> list[HeldOutPrompt]:
    """Distinct prompts of the pairs that a policy was measured on, lowest row id first, at most `most` of them.

    `manifest` is the policy's own. Row ids are digests, so these prompts are a sample of all held-out prompts, and new
    data hardly changes it. Only shards that hold such a prompt are read.
    """
    held_out = read_held_out(context.store, policy)
    first: dict[str, str] = {}
    for pair in held_out.pairs if held_out else []:
        first.setdefault(pair.prompt_id, pair.row_id)
    row_ids = list(first.values())[:most]
    if not row_ids:
        return []
    folder = context.fetch(manifest)
    these = pc.field("row_id").isin(row_ids)
    places = pq.read_table(folder / SPLIT_FILE, columns=["shard"], filters=these & (pc.field("split") == "held_out"))
    shards = set(places["shard"].to_pylist())
    contents: dict[str, Content] = {}
    for shard in read_manifest(folder).shards:
        if shard.name in shards:
            path = context.fetch(shard.shard) / ROWS_FILE
            for row in pq.read_table(path, columns=["row_id", "form", "prompt"], filters=these).to_pylist():
                contents[row["row_id"]] = decode(row["form"], row["prompt"])
    if missing := [row_id for row_id in row_ids if row_id not in contents]:
        raise CorruptArtifact(
            f"{len(missing)} held-out rows of the policy are not in its manifest (first: {missing[0]})"
        )
    return [HeldOutPrompt(row_id, contents[row_id]) for row_id in row_ids]


DIVERGENCE_FILE = "divergence.parquet"
MOST_PROMPTS = 128
MOST_NEW_TOKENS = 256
SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("tokens", pa.int32()),
        ("ended", pa.bool_()),
        ("policy_logp", pa.float64()),
        ("sft_logp", pa.float64()),
    ]
)


class DivergenceRequest(Request):
    """`manifest` is the policy's own: the prompts are those of its held-out pairs. `sft` is where the policy started.

    `tokens` is how training wrote its prompts (`TokenPolicy.writing`). `sharded` cuts the models over the processes,
    where there are several.
    """

    speed_only: ClassVar[frozenset[str]] = frozenset({"batch_tokens", "sharded"})
    absent_by_default: ClassVar[frozenset[str]] = frozenset({"tokens"})

    policy: Artifact
    sft: Artifact
    manifest: Artifact
    seed: int
    precision: str
    batch_tokens: int
    sharded: bool = False
    tokens: TokenPolicy = TokenPolicy()


@dataclass(frozen=True)
class SampledResponse:
    """One response of the policy: its number of tokens (with the end token) and its log-prob in nats under both models.

    The response itself is not kept: it may repeat training data.
    """

    row_id: str
    tokens: int
    ended: bool
    policy_logp: float
    sft_logp: float

    @property
    def log_ratio(self) -> float:
        """log π(y|x) − log π_SFT(y|x) of the response, in nats."""
        return self.policy_logp - self.sft_logp


def run(request: DivergenceRequest, context: Context) -> Result:
    """Writes divergence.parquet, one row a response. Without held-out prompts it is empty, and the summary says so."""
    sharded = request.sharded and context.world_size > 1
    if context.rank and not sharded:
        return Result("")  # one process is enough for so few responses
    with Ranks(context.rank, context.world_size if sharded else 1).together():
        return _measure(request, context, load_sharded if sharded else load_model)


def _measure(request: DivergenceRequest, context: Context, load: Callable[..., PreTrainedModel]) -> Result:
    """Every rank of a sharded model measures all responses; the first one's file counts."""
    prompts = held_out_prompts(context, request.policy, request.manifest, MOST_PROMPTS)
    responses = _sample_responses(request, context, prompts, load) if prompts else []
    write_records(context.out / DIVERGENCE_FILE, SCHEMA, map(asdict, responses))
    digest = json_digest(
        [request.policy.digest, request.sft.digest, [list(asdict(response).values()) for response in responses]]
    )
    no_room = len(prompts) - len(responses)
    return Result(digest, DivergenceSummary(prompts=len(prompts), no_room=no_room, **summary(responses)))


def _sample_responses(
    request: DivergenceRequest,
    context: Context,
    prompts: Sequence[HeldOutPrompt],
    load: Callable[..., PreTrainedModel],
) -> list[SampledResponse]:
    folders = context.fetch(request.policy), context.fetch(request.sft)
    runs_code = context.runs_code(request.policy)
    model = load(folders[0], request.precision, runs_code=runs_code)
    generator = Generator(model, load_tokenizer(folders[0], runs_code), request.batch_tokens, request.tokens)
    # each response is drawn independently: other prompts and the batch size do not change it
    samplings = [Sampling(1.0, 1.0, f"{request.seed}/policy_divergence/{prompt.row_id}") for prompt in prompts]
    written = [as_trained(prompt.content, request.tokens) for prompt in prompts]
    answers = generator.answer(written, MOST_NEW_TOKENS, (), samplings)
    kept = [(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True) if answer.failed is None]
    asked = [content for content, answer in zip(written, answers, strict=True) if answer.failed is None]
    sequences = [
        TokenSequence(tuple(generator.encoder.encode(content)), answer.ids)
        for content, (_, answer) in zip(asked, kept, strict=True)
    ]
    ended = [answer.ids[-1] in generator.end_ids for _, answer in kept]
    rows = [prompt.row_id for prompt, _ in kept]
    under_policy = logps(model, sequences, request.batch_tokens)
    for row_id, logp in zip(rows, under_policy, strict=True):
        require_finite(logp, row_id, folders[0], request.precision)
    del model, generator  # before the other is loaded, so that one model's memory is enough
    free_memory()
    sft = load(folders[1], request.precision, runs_code=context.runs_code(request.sft))
    under_sft = logps(sft, sequences, request.batch_tokens)
    for row_id, logp in zip(rows, under_sft, strict=True):
        require_finite(logp, row_id, folders[1], request.precision)
    return [
        SampledResponse(prompt.row_id, len(answer.ids), over, policy, sft)
        for (prompt, answer), over, policy, sft in zip(kept, ended, under_policy, under_sft, strict=True)
    ]


def logps(model: PreTrainedModel, sequences: Sequence[TokenSequence], batch_tokens: int) -> list[float]:
    """Log-prob of each completion in nats, in order."""
    by_index = {scored.index: scored.logp for batch in score(model, sequences, batch_tokens) for scored in batch.scored}
    return [by_index[index] for index in range(len(sequences))]


def summary(responses: Sequence[SampledResponse]) -> dict[str, Any]:
    """`kl` in nats a response and `kl_per_token` (all nats over all tokens), each with its standard error and 95 %
    interval; mean tokens a response, and the share that ended by itself. Empty without a response.

    Prompts are distinct, so responses are independent and need no clusters.
    """
    if not responses:
        return {}
    nats, tokens = [response.log_ratio for response in responses], [float(response.tokens) for response in responses]
    clusters = [response.row_id for response in responses]
    estimates = {
        "kl": mean_interval(clustered_mean(nats, clusters)),
        "kl_per_token": ratio_interval(nats, tokens),
    }
    return {
        **dict(_numbers(estimates)),
        "tokens_per_response": sum(tokens) / len(responses),
        "ended": sum(response.ended for response in responses) / len(responses),
        "intervals": {
            name: None if interval.low is None else [interval.low, interval.high]
            for name, interval in estimates.items()
        },
    }


def _numbers(estimates: dict[str, Interval]) -> Iterator[tuple[str, float | None]]:
    for name, interval in estimates.items():
        yield name, interval.mean.value
        yield f"{name}_stderr", interval.mean.stderr


STAGE = Stage("policy_divergence", 1, DivergenceRequest, run, device="gpu")
