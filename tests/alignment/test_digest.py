from __future__ import annotations

import hashlib
import random

from hypothesis import given
from hypothesis import strategies as some

from alignment.digest import SetDigest


def digest(lines: list[str]) -> str:
    made = SetDigest()
    for line in lines:
        made.add(line)
    return made.hexdigest


@given(some.lists(some.text()), some.randoms())
def test_a_set_digest_knows_no_order(lines: list[str], draw: random.Random) -> None:
    assert digest(draw.sample(lines, len(lines))) == digest(lines)


@given(some.lists(some.text(), min_size=1), some.data())
def test_a_line_more_less_or_changed_is_another_digest(lines: list[str], data: some.DataObject) -> None:
    place = data.draw(some.integers(0, len(lines) - 1))
    others = [lines[:place] + lines[place + 1 :], [*lines, lines[place]], [*lines[:place], lines[place] + "x"]]
    if sorted(others[2] + lines[place + 1 :]) != sorted(lines):
        others[2] += lines[place + 1 :]
    assert digest(lines) not in [digest(other) for other in others]


def test_a_set_digest_is_the_sum_of_its_lines_hashes() -> None:
    hashes = [int(hashlib.shake_256(line).hexdigest(256), 16) for line in (b"one", b"two", b"two")]
    total = sum(hashes) % 2**2048
    assert digest(["two", "one", "two"]) == hashlib.sha256(bytes.fromhex(f"{total:0512x}")).hexdigest()
