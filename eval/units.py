"""Units: how a metric's values are told."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Unit:
    """How values are told: times `factor`, with `digits` decimals; `name` is what differences are counted in, and
    `sign` follows a value."""

    factor: float
    digits: int
    name: str
    sign: str

    def told(self, value: float | None, sign: str = "") -> str:
        """A number with a true minus, and no sign on what rounds to nothing; `sign` "+" asks for a plus."""
        if value is None:
            return "unknown"
        shown = f"{value * self.factor:{sign}.{self.digits}f}"
        return shown.lstrip("+-") if float(shown) == 0.0 else shown.replace("-", "−")


PERCENT = Unit(100.0, 1, "percentage points", " %")
PLAIN = Unit(1.0, 2, "points", "")


def unit_of(width: float | None) -> Unit:
    """Fractions are told in per cent, everything else as it is."""
    return PERCENT if width == 1.0 else PLAIN
