"""Two models compared by people: blinded pairs of answers to vote on, and the win rate that the votes give.

A ballot is a folder with a page and an empty table of votes. Which side is which model stands in a key file apart, so
that nobody who votes can see it. Votes and key hold no text: only the page does, and nothing of it goes into the store.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from alignment.digest import json_digest
from alignment.errors import BadInput, did_you_mean, did_you_mean_beside
from eval.statistics import Interval, Mean, mean_interval, ratio_interval, score_interval
from eval.statistics.paired import HALF, few_differ, score_statistic
from eval.suites.rows import read_rows

PAGE_FILE, VOTES_FILE = "vote.html", "votes.csv"
COLUMNS = ("ballot", "pair", "vote", "voter")
WORDS = ("left", "right", "tie")
Side = Literal["a", "b"]
SCRIPT = Path(__file__).parent / "templates" / "votes.js.jinja"


class Question(BaseModel):
    """What both models were asked: the turns of the user. Questions with the same prompt have the same `cluster`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    turns: tuple[str, ...]

    @property
    def cluster(self) -> str:
        """The same for equal prompts."""
        return json_digest(self.turns)[:16]


class Pair(BaseModel):
    """Which item a pair on the ballot is, and which model stands on the left."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    item: str
    cluster: str
    left: Side


class Key(BaseModel):
    """The key of a ballot, without any text. `identical` are the items with equal answers, which are ties and not voted
    on; `left_out` counts the items that one side has no answer to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    ballot: str
    a: str
    b: str
    digests: dict[Side, str | None] = {}
    items: str
    seed: int
    pairs: dict[str, Pair]
    identical: dict[str, str] = {}
    left_out: int = 0


Answers = Mapping[str, Sequence[str]]
"""Item id to the answer of each turn."""


def blind(
    questions: Sequence[Question],
    a: Answers,
    b: Answers,
    names: tuple[str, str],
    items: str,
    seed: int,
    limit: int | None,
) -> tuple[Key, list[dict[str, Any]]]:
    """The key, and the pairs of the page in their order: {pair, turns: [{asked, left, right}]}.

    Order and sides are drawn from the seed; each model stands on the left as often as on the right. Raises `BadInput`
    if there is nothing to vote on.
    """
    draw = random.Random(f"{seed}:{items}")
    both = [question for question in questions if question.id in a and question.id in b]
    chosen = both if limit is None or limit >= len(both) else draw.sample(both, limit)
    same = {one.id: one.cluster for one in chosen if list(a[one.id]) == list(b[one.id])}
    open_ones = [one for one in chosen if one.id not in same]
    if not open_ones:
        what = "both give the same answers to all" if same else "no item has an answer of both"
        raise BadInput(f"nothing to vote on: {what}")
    draw.shuffle(open_ones)
    sides: list[Side] = [("a", "b")[place % 2] for place in range(len(open_ones))]  # type: ignore[misc]
    draw.shuffle(sides)
    width = max(3, len(str(len(open_ones))))
    pairs, page = {}, []
    for place, (one, left) in enumerate(zip(open_ones, sides, strict=True), start=1):
        name = f"p{place:0{width}d}"
        pairs[name] = Pair(item=one.id, cluster=one.cluster, left=left)
        shown = (a, b) if left == "a" else (b, a)
        turns = zip(one.turns, shown[0][one.id], shown[1][one.id], strict=False)
        page.append({"pair": name, "turns": [{"asked": q, "left": x, "right": y} for q, x, y in turns]})
    # of what is asked and not of the sides, which could be found by trying them
    ballot = json_digest([names, items, seed, [pair.item for pair in pairs.values()]])[:12]
    key = Key(
        ballot=ballot,
        a=names[0],
        b=names[1],
        items=items,
        seed=seed,
        pairs=pairs,
        identical=same,
        left_out=len(questions) - len(both),
    )
    return key, page


def write_ballot(folder: Path, key: Key, page: Sequence[Mapping[str, Any]]) -> None:
    """Writes the page and the empty table of votes. The page needs no network, and its policy allows it none."""
    from eval.report.page import render

    script = SCRIPT.read_text(encoding="utf-8")
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = render("votes.html.jinja", ballot=key.ballot, pairs=page, script=script, allowed=allowed)
    (folder / PAGE_FILE).write_text(text, encoding="utf-8")
    rows = [",".join(COLUMNS), *(f"{key.ballot},{pair['pair']},," for pair in page)]
    (folder / VOTES_FILE).write_text("\n".join(rows) + "\n", encoding="utf-8")


def read_key(path: Path) -> Key:
    """The key of a ballot; raises `BadInput` for a file that is none."""
    try:
        return Key.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        told = f"no such file; `align ab export` wrote it{did_you_mean_beside(str(path))}"
        raise BadInput(told, file=str(path), field="--key") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput("not a key of `align ab export`", file=str(path), field="--key") from error


class Vote(BaseModel):
    """A person's vote on a pair."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pair: str
    vote: str
    voter: str


def read_votes(path: Path, key: Key) -> list[Vote]:
    """The votes in a file; pairs without a vote are skipped, and a voter without a name has that of the file.

    Raises `BadInput` that names the row of a vote for another ballot or pair, of a word that is none, and of a second
    vote of one person on one pair.
    """
    votes: dict[tuple[str, str], Vote] = {}
    for row, record in read_rows(path):
        missing = [name for name in COLUMNS[:3] if name not in record]
        if missing:
            raise BadInput(f"no column {', '.join(missing)}: not a table of votes", file=str(path), row=row)
        ballot, pair, word, voter = (_cell(record.get(name)) for name in COLUMNS)
        if not word:
            continue
        if ballot != key.ballot:
            problem = f"a vote on ballot {ballot or 'without a name'}, and the key is of {key.ballot}"
            raise BadInput(problem, file=str(path), row=row, field="ballot")
        if pair not in key.pairs:
            raise BadInput(f"no pair '{pair}' on the ballot", file=str(path), row=row, field="pair")
        if word.lower() not in WORDS:
            problem = f"'{word[:40]}' is not left, right or tie{did_you_mean(word.lower(), WORDS)}"
            raise BadInput(problem, file=str(path), row=row, field="vote")
        vote = Vote(pair=pair, vote=word.lower(), voter=voter or path.stem)
        if (pair, vote.voter) in votes:
            raise BadInput(f"{vote.voter} voted on {pair} before", file=str(path), row=row, field="pair")
        votes[pair, vote.voter] = vote
    return list(votes.values())


def _cell(value: Any) -> str:
    return "" if value is None else str(value).strip()


def result_of(key: Key, votes: Sequence[Vote]) -> dict[str, Any]:
    """The win rate of `b` over `a` with its 95 % interval, clustered by prompt; ties count half.

    Each pair counts once, with the mean of its votes, and items with identical answers are ties (`rate_of`), so the
    rate does not depend on how many voted. `votes`, `wins`, `losses` and `ties` count votes. `verdict` is `b` or `a` if
    the interval excludes one half, else `undecided`. `agreement` is the share of pairs of votes on one pair that agree;
    None without such. Raises `BadInput` without any vote, and for two votes of one person on one pair.
    """
    if not votes:
        raise BadInput("no votes: fill the column vote with left, right or tie")
    seen: set[tuple[str, str]] = set()
    of_pair: dict[str, list[float]] = {}
    for vote in votes:
        if (vote.pair, vote.voter) in seen:
            raise BadInput(f"{vote.voter} voted on {vote.pair} in two files: give the last one alone", field="VOTES")
        seen.add((vote.pair, vote.voter))
        right_is_b = key.pairs[vote.pair].left == "a"
        outcome = HALF if vote.vote == "tie" else float((vote.vote == "right") == right_is_b)
        of_pair.setdefault(vote.pair, []).append(outcome)
    outcomes = [outcome for given in of_pair.values() for outcome in given]
    found = rate_of(key, {pair: math.fsum(given) / len(given) for pair, given in of_pair.items()})
    twice = [one == other for given in of_pair.values() for one, other in combinations(given, 2)]
    low, high = found.low, found.high
    decided = low is not None and high is not None and (low > HALF or high < HALF)
    return {
        "a": key.a,
        "b": key.b,
        "items": key.items,
        "votes": len(outcomes),
        "voters": len({vote.voter for vote in votes}),
        "pairs": len(key.pairs),
        "pairs_voted": len(of_pair),
        "wins": outcomes.count(1.0),
        "losses": outcomes.count(0.0),
        "ties": outcomes.count(HALF),
        "identical": len(key.identical),
        "left_out": key.left_out,
        "win_rate": found.mean.value,
        "ci95": None if low is None or high is None else [low, high],
        "p_value": found.p_value,
        "verdict": "undecided" if not decided else "b" if found.mean.value > HALF else "a",
        "agreement": sum(twice) / len(twice) if twice else None,
        "digests": dict(key.digests),
    }


def rate_of(key: Key, outcomes: Mapping[str, float]) -> Interval:
    """The win rate over all items of a ballot, from the outcomes (0 to 1) of the pairs that were voted on.

    The pairs voted on stand for all pairs, so an item with identical answers is a tie with the weight pairs voted on /
    pairs: the two kinds of items then have the shares that they have on the ballot. The p-value is against one half.
    The interval is Student's t on the standard error of this ratio, clustered by prompt, with the degrees of freedom of
    the pairs that were voted on. If most of these agree, or hardly any item is no tie, it is Tango's score interval as
    in `eval.statistics.paired`, on as many pairs as the weights come to, and so it is no point if one side always wins.
    """
    gains = [outcome - HALF for outcome in outcomes.values()]
    prompts = [key.pairs[pair].cluster for pair in outcomes]
    same = list(key.identical.values())
    values, clusters = gains + [0.0] * len(same), prompts + same
    weights = [1.0] * len(gains) + [len(gains) / len(key.pairs)] * len(same)
    weighted = [weight * value for weight, value in zip(weights, values, strict=True)]
    mean = ratio_interval(weighted, weights, clusters).mean
    if mean.clusters < 2:
        found = Interval(mean, None, None, None)
    elif few_differ(gains, prompts) or few_differ(values, clusters):
        found = _score_interval(mean, weighted, weights, clusters)
    else:
        found = mean_interval(replace(mean, clusters=len(set(prompts))))
    low, high = (None if end is None else end + HALF for end in (found.low, found.high))
    return Interval(replace(mean, value=mean.value + HALF), low, high, found.p_value)


def _score_interval(
    mean: Mean, weighted: Sequence[float], weights: Sequence[float], clusters: Sequence[str]
) -> Interval:
    """Tango's interval of a weighted mean gain between −½ and ½; an item of weight w is worth w items."""
    total, sizes = math.fsum(weights), Counter(clusters)
    gained, lost = (math.fsum(max(sign * gain, 0.0) for gain in weighted) / (total * HALF) for sign in (1, -1))
    # Kish's (Σm)²/Σm² for clusters of m items, where each item is counted with its weight
    pairs = total * total / math.fsum(weight * sizes[of] for weight, of in zip(weights, clusters, strict=True))
    low, high = score_interval(gained, lost, pairs)
    p_value = math.erfc(abs(score_statistic(gained, lost, pairs, 0.0)) / math.sqrt(2))
    return Interval(mean, low * HALF, high * HALF, p_value)
