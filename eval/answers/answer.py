"""Asks a model the questions of a suite, and returns its answers as responses."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alignment.errors import BadInput
from alignment.generation.generator import Answer, Generator, Message, Prompt, PromptEncoder, batches
from alignment.models.sharding import sharding_of
from eval.answers.asking import AnyGenerator, Asking, BestOfGenerator
from eval.answers.files import Response
from eval.suites.items import hub_rows, load_items, sample_positions
from eval.suites.lm_eval_task import ItemError, chat_prompts, continuations, open_task, plain_prompts, stop_strings
from eval.suites.lm_eval_tasks import quiet, root_cause, subsets, tasks_of
from eval.suites.rows import read_pinned_rows
from eval.suites.suite import Item, StockTask, Suite, SuiteSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel


# Log-likelihoods of continuations under a loaded model: lm-eval's own scorer and tokenisation, in a token budget.


class ContinuationScorer:
    """lm-eval's HFLM around a loaded model; forward passes hold at most `batch_tokens` padded tokens."""

    def __init__(self, model: PreTrainedModel, encoder: PromptEncoder, batch_tokens: int) -> None:
        tokenizer = copy.deepcopy(encoder.tokenizer)
        tokenizer.chat_template = encoder.chat_template
        with quiet():
            from lm_eval.models.huggingface import HFLM

            class Budgeted(HFLM):  # type: ignore[misc]
                sizes: tuple[int, ...] = ()

                def _batch_scheduler(self, pos: int, n_reordered_requests: Any) -> int:
                    if pos == 0:  # all requests, longest first: computes the size of each one's batch
                        lengths = [len(context) + len(wanted) for _, context, wanted in n_reordered_requests]
                        made = batches(lengths, range(len(lengths)), 0, batch_tokens)
                        self.sizes = tuple(len(batch) for batch in made for _ in batch)
                    return self.sizes[pos]

            self.lm = Budgeted(pretrained=model, tokenizer=tokenizer, batch_size="auto")

    def template(self, messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Messages as the text that the model sees."""
        return str(self.lm.apply_chat_template(messages, add_generation_prompt=add_generation_prompt))

    def problem(self, requests: Sequence[Any]) -> str | None:
        """Why an item's requests cannot be scored whole, or None. lm-eval itself would cut a long context at its
        start."""
        for context, continuation in (request.args for request in requests):
            before, wanted = self._encode(context, continuation)
            if not wanted:
                return f"the continuation {continuation!r} has no token of its own"
            if before + wanted > self.lm.max_length + 1:
                return f"context and continuation of {before + wanted} tokens > {self.lm.max_length} + 1"
        return None

    def _encode(self, context: str, continuation: str) -> tuple[int, int]:
        """Token counts of context and continuation, split as lm-eval splits them."""
        if not context:  # lm-eval puts one token before it
            return 1, len(self.lm.tok_encode(continuation, add_special_tokens=False))
        before, wanted = self.lm._encode_pair(context, continuation)
        return len(before), len(wanted)

    def tokens(self, request: Any) -> int:
        """The tokens of a request's continuation."""
        return self._encode(*request.args)[1]

    def score(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """For each request the continuation's log-likelihood in nats, and whether it is the greedy continuation."""
        if not requests:
            return []
        sharding = sharding_of(self.lm.model)
        # each rank of a sharded model scores all of them, as lm-eval batches them by itself
        with quiet(), nullcontext() if sharding is None else sharding.uncounted(self.lm.model):
            scores = self.lm.loglikelihood(list(requests), disable_tqdm=True)
        return [(float(value), bool(greedy)) for value, greedy in scores]


# Answers to lm-eval's tasks: texts for its prompts, or log-likelihoods of its continuations.


def task_texts(asking: Asking, items: Sequence[Item], positions: Sequence[int]) -> list[Response]:
    """The answers to the items at these positions.

    Prompts are made for all items, because lm-eval draws few-shot examples in the order of the items.
    """
    prompts: dict[int, tuple[Prompt, tuple[str, ...]]] = {}
    for own, task, shots in _opened(asking, items):
        with _naming([items[place] for place in own]):
            made: Sequence[Prompt] = (chat_prompts if asking.chat else plain_prompts)(task, shots)
        prompts |= {place: (prompt, stop_strings(task)) for place, prompt in zip(own, made, strict=True)}
    answers: dict[int, Answer] = {}
    for until in dict.fromkeys(prompts[place][1] for place in positions):
        these = [place for place in positions if prompts[place][1] == until]
        given = asking.generator.answer(
            [prompts[place][0] for place in these],
            asking.spec.max_new_tokens,
            until,
            [asking.sampling(items[place]) for place in these],
        )
        answers |= dict(zip(these, given, strict=True))
    return [_response(items[place], answers[place]) for place in positions]


def task_choices(asking: Asking, items: Sequence[Item], positions: Sequence[int]) -> list[Response]:
    """The log-likelihoods of lm-eval's continuations for the items at these positions.

    Raises `BadInput` for an endpoint, which gives no log-likelihoods.
    """
    scorer = _continuation_scorer(asking)
    wanted = set(positions)
    requests: dict[int, list[Any]] = {}
    for own, task, shots in _opened(asking, items):
        with _naming([items[place] for place in own]):
            made = continuations(task, shots, scorer.template if asking.chat else None)
        requests |= {place: part for place, part in zip(own, made, strict=True) if place in wanted}
    problems = {place: scorer.problem(requests[place]) for place in positions}
    fitting = [place for place in positions if problems[place] is None]
    scores = iter(scorer.score([request for place in fitting for request in requests[place]]))
    scored = {place: tuple(next(scores) for _ in requests[place]) for place in fitting}
    return [Response(items[place].id, (), problems[place], scored.get(place, ())) for place in positions]


def _continuation_scorer(asking: Asking) -> ContinuationScorer:
    loaded = asking.generator
    if not isinstance(loaded, Generator):
        problem = f"{asking.suite.name} needs log-likelihoods, which only a loaded model gives: set kind: transformers"
        raise BadInput(problem, field="evals.generate.kind")
    return ContinuationScorer(loaded.model, loaded.encoder, loaded.batch_tokens)


def completions(
    asking: Asking, choices: Callable[[Item], tuple[str, tuple[str, ...]]], items: Sequence[Item]
) -> list[Response]:
    """The mean log-likelihood a token of every completion of the items' prompts.

    A mean, because a sum would prefer the shortest completion. Raises `BadInput` for an endpoint.
    """
    from lm_eval.api.instance import Instance

    scorer = _continuation_scorer(asking)
    asked: list[list[Any]] = []
    for item in items:
        prompt, texts = choices(item)
        written = scorer.template([{"role": "user", "content": prompt}]) if asking.chat else prompt + TURN_BREAK
        asked.append([Instance("loglikelihood", {}, (written, text), place) for place, text in enumerate(texts)])
    problems = [scorer.problem(requests) for requests in asked]
    scores = iter(
        scorer.score(
            [request for requests, why in zip(asked, problems, strict=True) if not why for request in requests]
        )
    )
    responses: list[Response] = []
    for item, requests, why in zip(items, asked, problems, strict=True):
        pairs = [] if why else [(next(scores), scorer.tokens(request)) for request in requests]
        means = tuple((value / tokens, greedy) for (value, greedy), tokens in pairs)
        responses.append(Response(item.id, (), why, means))
    return responses


def _response(item: Item, answer: Answer) -> Response:
    if answer.failed is not None:
        return Response(item.id, (), answer.failed)
    return Response(item.id, (answer.text,), tokens=(answer.tokens,))


def _opened(asking: Asking, items: Sequence[Item]) -> Iterator[tuple[list[int], Any, int]]:
    """For each task of the suite: the positions of its items, the open task, and its number of few-shot examples."""
    given = _examples(asking)
    for stock, own in tasks_of(asking.suite, items):
        shots = stock.num_fewshot if asking.spec.num_fewshot is None else asking.spec.num_fewshot
        shown = given if stock is asking.suite.task else _of_subset(asking, stock, given)
        _check_examples(asking, stock, shots, len(shown))
        part = [items[place] for place in own]
        with open_task(stock, part, shown if shots else (), shots) as task:
            yield own, task, shots


@contextmanager
def _naming(items: Sequence[Item]) -> Iterator[None]:
    try:
        yield
    except ItemError as error:
        raise BadInput(f"lm-eval cannot ask item {items[error.index].id}: {root_cause(error)}") from error


def _examples(asking: Asking) -> list[dict[str, Any]]:
    if asking.spec.few_shot_data is not None:
        return [record for _, record in read_pinned_rows(asking.spec.few_shot_data)]
    if asking.spec.few_shot_hub is not None:
        return [record for _, record in hub_rows(asking.suite, asking.spec.few_shot_hub)]
    return []


def _of_subset(asking: Asking, stock: StockTask, examples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    names = subsets(asking.suite, examples) if examples else []
    return [record for name, record in zip(names, examples, strict=True) if asking.suite.members[name] is stock]


def _check_examples(asking: Asking, stock: StockTask, wanted: int, given: int) -> None:
    field = f"evals.{asking.suite.name}.few_shot_data"
    among_items = stock.few_shot_split == stock.split
    if not wanted or stock.own_examples or (among_items and not given):
        return
    if not given:
        raise BadInput(f"num_fewshot: {wanted} needs few_shot_data to draw examples from", field=field)
    if among_items:
        raise BadInput(f"{stock.name} draws its examples from other items; leave few_shot_data out", field=field)
    if given < wanted:
        raise BadInput(f"{given} examples for {stock.name}, {wanted} asked for", field=field)


TURN_BREAK = "\n\n"
"""Separates the turns of a conversation with a model that has no chat template."""


@dataclass(frozen=True)
class Answered:
    """The items asked, their responses in the same order, and the generation settings."""

    items: list[Item]
    responses: list[Response]
    settings: dict[str, Any]

    @property
    def tokens(self) -> int:
        """Number of generated tokens."""
        return sum(sum(response.tokens) for response in self.responses)


def answer_suite(suite: Suite, spec: SuiteSpec, seed: int, generator: AnyGenerator) -> Answered:
    """Asks the items that `spec.limit` selects; an item's prompt does not depend on the limit. `seed` makes embedded
    items and draws answers, and the items too where `spec.sample_seed` is None.

    Raises `BadInput` for a chat template that the tokenizer does not have, and for examples that are missing.
    """
    items = load_items(suite, spec, seed)
    if isinstance(generator, BestOfGenerator) and (suite.choices is not None or suite.output != "generate_until"):
        generator = generator.generator  # there is one log-likelihood of a continuation, and nothing to choose
    chat = generator.is_chat if spec.chat_template is None else spec.chat_template
    if chat and not generator.is_chat:
        raise BadInput("the tokenizer has no chat template", field=f"evals.{suite.name}.chat_template")
    asking = Asking(suite, spec, seed, generator, chat)
    positions = sample_positions(items, spec.limit, seed if spec.sample_seed is None else spec.sample_seed)
    asked = [items[position] for position in positions]
    if suite.choices is not None:
        scored = completions(asking, suite.choices, asked)
        return Answered(asked, scored, {"chat_template": chat, "log_likelihoods": "mean of a token"})
    if suite.output != "generate_until":
        return Answered(asked, task_choices(asking, items, positions), {"chat_template": chat, "log_likelihoods": True})
    is_task = suite.task is not None or bool(suite.members)
    responses = task_texts(asking, items, positions) if is_task else conversations(asking, asked)
    return Answered(asked, responses, {"chat_template": chat, **_decoding(asking, asked)})


def conversations(asking: Asking, items: Sequence[Item]) -> list[Response]:
    """Asks the questions turn by turn; a prompt contains the earlier turns with the model's answers."""
    questions: list[list[str]] = [item.fields["turns"] for item in items]
    spoken: list[list[Message]] = [[] for _ in items]
    turns: list[list[str]] = [[] for _ in items]
    tokens: list[list[int]] = [[] for _ in items]
    failed: dict[int, str] = {}
    for turn in range(max(map(len, questions), default=0)):
        asked = [index for index in range(len(items)) if index not in failed and turn < len(questions[index])]
        for index in asked:
            spoken[index].append({"role": "user", "content": questions[index][turn]})
        prompts = [_prompt(spoken[index], asking.chat) for index in asked]
        samplings = [asking.sampling(items[index], turn + 1) for index in asked]
        answers = asking.generator.answer(prompts, asking.spec.max_new_tokens, (), samplings)
        for index, answer in zip(asked, answers, strict=True):
            if answer.failed is not None:
                failed[index] = f"turn {turn + 1}: {answer.failed}"
                continue
            text = answer.text.strip()
            turns[index].append(text)
            tokens[index].append(answer.tokens)
            spoken[index].append({"role": "assistant", "content": text})
    return [
        Response(item.id, tuple(turns[index]), failed.get(index), tokens=tuple(tokens[index]))
        for index, item in enumerate(items)
    ]


def _prompt(messages: Sequence[Message], chat: bool) -> Prompt:
    return list(messages) if chat else TURN_BREAK.join(message["content"] for message in messages)


def _decoding(asking: Asking, items: Sequence[Item]) -> dict[str, Any]:
    if isinstance(asking.generator, BestOfGenerator):
        chosen = asking.generator.settings.model_dump()
        return {"max_new_tokens": asking.spec.max_new_tokens, "best_of": chosen, "seed": asking.seed}
    return {
        "max_new_tokens": asking.spec.max_new_tokens,
        "temperatures": sorted({asking.sampling(item).temperature for item in items}),
        "top_p": asking.spec.top_p,
        "seed": asking.seed,
    }
