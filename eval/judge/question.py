"""What a judge is asked about one turn of one answer, or of two beside each other."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """One question to a judge. `game` is as in `Judgment`: 0 alone, 1 and 2 the two orders of a pair."""

    question_id: str
    turn: int
    prompt_name: str
    system: str
    user: str
    game: int = 0

    @property
    def name(self) -> str:
        """How it is named to a person."""
        order = ("", ", the model's answer first", ", the baseline's answer first")[self.game]
        return f"question {self.question_id} turn {self.turn}{order}"

    def messages(self) -> list[dict[str, str]]:
        """The chat messages that put it to a judge."""
        system = [{"role": "system", "content": self.system}] if self.system.strip() else []
        return [*system, {"role": "user", "content": self.user}]
