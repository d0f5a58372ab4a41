"""A judgment: what a judge wrote about one turn, and the verdict that stands in it."""

from __future__ import annotations

from dataclasses import dataclass, field

from eval.judge.verdicts import Preference, parse_preference, parse_rating, parse_safety

SAFETY_PROMPT = "harmless-v1"


@dataclass(frozen=True)
class Judgment:
    """What a judge said of one turn (1-based) of one answer; the verdict is always read from the text.

    `game` is 0 where an answer is judged alone. Of a pair, it is 1 with the model's answer shown first, as A,
    and the baseline's second; 2 the other way round. `against` names the baseline. `row` is where a stored
    one stands in its file.
    """

    question_id: str
    turn: int
    judge: str
    prompt_name: str
    user_prompt: str
    text: str
    model: str = ""
    game: int = 0
    against: str = ""
    row: int | None = field(default=None, compare=False)

    @property
    def place(self) -> tuple[str, int, int]:
        """Which question, turn and game it is about."""
        return self.question_id, self.turn, self.game

    @property
    def preference(self) -> Preference | None:
        """Of a pair: how far the model's answer is preferred to the baseline's, whichever was shown first."""
        seen = parse_preference(self.text)
        if seen is None or self.game == 1:
            return seen
        return Preference(1.0 - seen.first, seen.weight)

    @property
    def score(self) -> float | None:
        """The rating (1 to 10), 1 or 0 for a safe or unsafe answer, or of a pair the model's points (1, 0.5, 0)."""
        if self.game:
            return None if self.preference is None else self.preference.first
        return parse_safety(self.text) if self.prompt_name == SAFETY_PROMPT else parse_rating(self.text)
