"""Who scores sampled answers: checks, exact results, IFEval's checkers, a judge, a reward model, or a sum of these.

A scorer gives each answer a number, or the reason why it gives none: an answer without a score is in no pair, and the
others stay.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from alignment.data.rows import Content, decode, form_of, text_of
from alignment.data.tokens import Dropped, Tokenization
from alignment.errors import BadInput
from alignment.models.checkpoint import embeddings, load_tokenizer, max_positions
from alignment.models.reward import kept_reward_model, rewards
from alignment.recipe.data import Section
from alignment.recipe.evaluation import Judge
from alignment.recipe.forward import TokenPolicy
from alignment.recipe.generate import Score
from alignment.stages.stage import Context
from alignment.store import Artifact
from eval.answers.files import Response
from eval.grading.choose import bill
from eval.grading.lm_eval import replayed
from eval.grading.pairs import PAIR
from eval.grading.ratings import SINGLE
from eval.judge.endpoint import Endpoint
from eval.judge.journal import Journal
from eval.judge.judgment import Question
from eval.judge.prompts import default_prompts, fill
from eval.judge.rubric import CHECKS, rubric_rating
from eval.suites import suite_named
from eval.suites.math import boxed, same
from eval.suites.suite import Item

Failed = str
"""Why an answer has no score."""


@dataclass(frozen=True)
class Scored:
    """An answer to be scored: its prompt, what verifies it, and a name of its own."""

    name: str
    prompt_id: str
    prompt: Content
    about: Mapping[str, Any]
    text: str
    tokens: int = 0


def scored_of(row: Mapping[str, Any], k: int, text: str, tokens: int) -> Scored:
    """An answer to the prompt of a candidate's row."""
    content, about = decode(row["form"], row["prompt"]), json.loads(row["about"])
    return Scored(f"{row['row_id']}/{k}", row["row_id"], content, about, text, tokens)


Scorer = Callable[[Sequence[Scored]], list[float | Failed]]


# Checks that a prompt carries itself.


def rubric(answers: Sequence[Scored]) -> list[float | Failed]:
    """From 1 to 10, by the share of the checks of the prompt's `rubric` that the answer passes."""
    return [_rated(answer) for answer in answers]


def _rated(answer: Scored) -> float | Failed:
    checks = answer.about.get("rubric")
    if not isinstance(checks, list) or not checks:
        return "the prompt has no rubric"
    if not all(isinstance(check, dict) and check.get("kind") in CHECKS and "value" in check for check in checks):
        return "the prompt's rubric holds what is no check"
    for check in checks:
        try:
            CHECKS[check["kind"]](answer.text.strip(), check["value"])
        except (ValueError, TypeError, re.error):  # a pattern, or a number of words, that is none
            return f"the prompt's rubric has a {check['kind']} that cannot be applied"
    return rubric_rating(answer.text, checks)


MARK = re.compile(r"####\s*(.+)")
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def exact(answers: Sequence[Scored]) -> list[float | Failed]:
    """1 where the answer's result is the prompt's `answer` or `solution`, else 0."""
    return [_exact(answer) for answer in answers]


def _exact(answer: Scored) -> float | Failed:
    told = next((answer.about[name] for name in ("answer", "solution") if name in answer.about), None)
    if not isinstance(told, str | int | float) or isinstance(told, bool):
        return "the prompt has no answer to compare with"
    wanted, given = marked_result(str(told)) or str(told), result_of(answer.text)
    return float(given is not None and same(given, wanted))


def marked_result(text: str) -> str | None:
    """The result that a text marks: in a box, or behind GSM8K's mark."""
    if (inside := boxed(text)) is not None:
        return inside
    marked = MARK.findall(text)
    return str(marked[-1]).strip() if marked else None


def result_of(text: str) -> str | None:
    """The result that a text gives: the one that it marks, or else its last number."""
    if (marked := marked_result(text)) is not None:
        return marked
    numbers = NUMBER.findall(text)
    return numbers[-1] if numbers else None


def instructions(answers: Sequence[Scored]) -> list[float | Failed]:
    """The share of the prompt's instructions that an answer follows, by IFEval's strict checkers."""
    suite = suite_named("ifeval")
    items: list[Item] = []
    for place, answer in enumerate(answers):
        listed, kwargs = answer.about.get("instruction_id_list"), answer.about.get("kwargs")
        if isinstance(listed, list) and isinstance(kwargs, list) and listed:
            record = {"key": place, "prompt": text_of(answer.prompt), "instruction_id_list": listed, "kwargs": kwargs}
            items.append(Item(str(place), record))
    answered = [(item, Response(item.id, (answers[int(item.id)].text,))) for item in items]
    samples, failed = replayed(suite, items, answered)
    followed: dict[int, list[float]] = defaultdict(list)
    for sample in samples:
        if sample.metric == "inst_level_strict_acc" and sample.value is not None:
            followed[int(sample.cluster)].append(sample.value)
    return [
        sum(followed[place]) / len(followed[place])
        if followed[place]
        else failed.get(str(place), "the prompt has no instructions")
        for place in range(len(answers))
    ]


# A judge: a rating for each answer, or a comparison of each two answers to a prompt.


@dataclass
class JudgeScorer:
    """Asks the recipe's judge. Judgments are kept in the journal over interruptions; `bill` is what they cost."""

    settings: Judge
    journal: Path
    pairwise: bool
    bill: dict[str, Any] = field(default_factory=dict)

    def __call__(self, answers: Sequence[Scored]) -> list[float | Failed]:
        """Ratings from 1 to 10, or shares of the points won from 0 to 1. Answers that the budget leaves out, and those
        that the judge fails on, have no score."""
        if self.settings.kind != "openai":
            problem = "answers are scored by a judge of kind openai; rubric is a kind of score"
            raise BadInput(problem, field="judge.kind")
        asked = self._comparisons(answers) if self.pairwise else self._ratings(answers)
        with Journal(self.journal) as journal:
            outcome = Endpoint(self.settings).ask([question for question, _ in asked], journal)
        self.bill = bill(outcome, self.settings)
        verdicts = {judgment.place: judgment.score for judgment in outcome.judgments}
        reasons: dict[Question, str] = dict.fromkeys(outcome.unasked, f"the judge's budget of {outcome.budget} ended")
        reasons |= {question: f"the judge failed: {why}" for question, why in outcome.failed.items()}
        reasons |= {question: f"the judge refused: {why}" for question, why in outcome.refused.items()}
        points: dict[int, list[float]] = defaultdict(list)
        failed: dict[int, str] = {}
        for question, places in asked:
            score = verdicts.get((question.question_id, question.turn, question.game))
            for place, mine in places:
                if score is None:
                    failed[place] = reasons.get(question, "the judge gave no verdict that can be read")
                else:
                    points[place].append(score if mine else 1.0 - score)
        return [
            sum(points[place]) / len(points[place])
            if points[place] and place not in failed
            else failed.get(place, "no other answer to compare with")
            for place in range(len(answers))
        ]

    def _ratings(self, answers: Sequence[Scored]) -> list[tuple[Question, list[tuple[int, bool]]]]:
        prompt = default_prompts()[SINGLE]
        return [
            (fill(answer.name, 1, prompt, {"question": text_of(answer.prompt), "answer": answer.text}), [(place, True)])
            for place, answer in enumerate(answers)
        ]

    def _comparisons(self, answers: Sequence[Scored]) -> list[tuple[Question, list[tuple[int, bool]]]]:
        """Each two answers to one prompt, in both orders."""
        prompt, by_prompt = default_prompts()[PAIR], defaultdict[str, list[int]](list)
        for place, answer in enumerate(answers):
            by_prompt[answer.prompt_id].append(place)
        asked = []
        for places in by_prompt.values():
            for one, other in combinations(places, 2):
                name = f"{answers[one].name} {answers[other].name}"
                for game, (first, second) in ((1, (one, other)), (2, (other, one))):
                    words = {"question": text_of(answers[one].prompt)}
                    words |= {"answer_a": answers[first].text, "answer_b": answers[second].text}
                    asked.append((fill(name, 1, prompt, words, game), [(one, True), (other, False)]))
        return asked


def tokenization_of(folder: Path, policy: TokenPolicy) -> Tokenization:
    """How a reward model reads a prompt with an answer: by its own tokenizer and chat template."""
    return Tokenization(load_tokenizer(folder), policy, max_positions(folder), (), embeddings(folder))


@dataclass(frozen=True)
class RewardScorer:
    """A reward model. It reads prompt and answer by its own tokenizer and chat template; an answer that these cannot
    write has no score."""

    folder: Path
    policy: TokenPolicy
    precision: str
    batch_tokens: int

    def __call__(self, answers: Sequence[Scored]) -> list[float | Failed]:
        """Rewards, in the model's own unit."""
        tokens = tokenization_of(self.folder, self.policy)
        found: list[float | Failed] = []
        ids: list[tuple[int, ...]] = []
        for answer in answers:
            said = answer.text if isinstance(answer.prompt, str) else ({"role": "assistant", "content": answer.text},)
            try:
                written = tokens.completion(form_of(answer.prompt), answer.prompt, said)
            except BadInput as error:
                problem = f"the reward model cannot read the prompts: {error.message}"
                field = "" if tokens.tokenizer.chat_template else ".chat_template"
                raise BadInput(problem, field=f"reward_model.adopt{field}") from error
            if isinstance(written, Dropped):
                found.append(f"the reward model cannot read it: {written.reason}")
            else:
                found.append(0.0)
                ids.append(written.prompt_ids + written.completion_ids)
        given = iter(rewards(kept_reward_model(self.folder, self.precision), ids, self.batch_tokens) if ids else ())
        return [one if isinstance(one, str) else next(given) for one in found]


# Several scorers in one.


class Total(NamedTuple):
    """An answer's score, those of its parts by kind, and why it has none."""

    score: float | None
    parts: dict[str, float]
    failed: str | None


class Reading(Section):
    """How a reward model is run: the token policy, precision, and tokens of a batch."""

    speed_only: ClassVar[frozenset[str]] = frozenset({"batch_tokens"})

    tokens: TokenPolicy
    precision: str
    batch_tokens: int


@dataclass
class Scores:
    """A weighted sum of scores, less a penalty for length; `bill` is what judges cost, once they were asked."""

    scores: Sequence[Score]
    length_penalty: float = 0.0
    judge: Judge | None = None
    reward_model: Artifact | None = None
    reading: Reading | None = None
    """How the reward model reads answers."""
    bill: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Who scored, as rows say it."""
        names: dict[str, str] = {}
        if self.judge is not None:
            names |= {kind: f"{kind} {self.judge.model}" for kind in ("judge", "judge_pairs")}
        if self.reward_model is not None:
            names["reward_model"] = f"reward_model {self.reward_model.digest[:12]}"
        told = [(score.weight, names.get(score.kind, score.kind)) for score in self.scores]
        return " + ".join(name if weight == 1 else f"{weight:g} × {name}" for weight, name in told)

    def of(self, answers: Sequence[Scored], context: Context) -> list[Total]:
        """The score of each answer. Judgments are kept in the work folder over interruptions."""
        parts: list[dict[str, float]] = [{} for _ in answers]
        failed: list[str | None] = [None] * len(answers)
        for score in self.scores if answers else ():
            scorer = self._scorer(score.kind, context)
            for place, value in enumerate(scorer(answers)):
                if isinstance(value, str):
                    failed[place] = failed[place] or value
                else:
                    parts[place][score.kind] = value
            if isinstance(scorer, JudgeScorer):
                self.bill = added([self.bill, scorer.bill] if self.bill else [scorer.bill])
        return [self._total(*one) for one in zip(answers, parts, failed, strict=True)]

    def _total(self, answer: Scored, parts: dict[str, float], failed: str | None) -> Total:
        total = sum(score.weight * parts.get(score.kind, 0.0) for score in self.scores)
        return Total(None if failed else total - self.length_penalty * answer.tokens, parts, failed)

    def _scorer(self, kind: str, context: Context) -> Scorer:
        if kind in ("judge", "judge_pairs"):
            if self.judge is None:
                raise BadInput(f"{kind} needs a judge, and the recipe has none", field="judge")
            return JudgeScorer(self.judge, context.work / f"{kind}.jsonl", pairwise=kind == "judge_pairs")
        if kind == "reward_model":
            if self.reward_model is None or self.reading is None:
                raise BadInput("there is no reward model", field="reward_model")
            reading = self.reading
            folder = context.fetch(self.reward_model)
            return RewardScorer(folder, reading.tokens, reading.precision, reading.batch_tokens)
        return {"rubric": rubric, "exact": exact, "instructions": instructions}[kind]


def added(bills: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Several bills in one: numbers add up, and an unknown price stays unknown."""
    total: dict[str, Any] = {}
    for name in dict.fromkeys(name for one in bills for name in one):
        values = [one.get(name) for one in bills]
        if all(isinstance(value, int | float) for value in values):
            total[name] = sum(value for value in values if isinstance(value, int | float))
        elif any(isinstance(value, dict) for value in values):
            total[name] = {key: one for value in values if isinstance(value, dict) for key, one in value.items()}
        elif any(isinstance(value, list) for value in values):
            total[name] = sorted({one for value in values if isinstance(value, list) for one in value})
        else:
            total[name] = None
    return total
