"""Lists in one line: a few names, and a count of the others."""

from __future__ import annotations

import time

from alignment.errors import did_you_mean, first_few


def test_a_short_list_is_named_whole() -> None:
    assert first_few([]) == ""
    assert first_few(list("abcde")) == "a, b, c, d, e"


def test_of_a_long_list_the_first_are_named_and_the_others_counted() -> None:
    assert first_few(list("abcdef")) == "a, b, c, d, e and 1 more"
    assert first_few(list("abcdefgh"), "; ") == "a; b; c; d; e and 3 more"


def test_a_text_that_was_pasted_in_place_of_a_name_is_compared_with_nothing() -> None:
    began = time.process_time()
    assert did_you_mean("x" * 1_000_000, ["x" * 90_000, "small"]) == ""
    assert time.process_time() - began < 1
    assert did_you_mean("smal", ["small", "large"]) == "; did you mean small?"
