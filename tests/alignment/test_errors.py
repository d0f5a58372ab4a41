"""Lists in one line: a few names, and a count of the others."""

from __future__ import annotations

from alignment.errors import first_few


def test_a_short_list_is_named_whole() -> None:
    assert first_few([]) == ""
    assert first_few(list("abcde")) == "a, b, c, d, e"


def test_of_a_long_list_the_first_are_named_and_the_others_counted() -> None:
    assert first_few(list("abcdef")) == "a, b, c, d, e and 1 more"
    assert first_few(list("abcdefgh"), "; ") == "a; b; c; d; e and 3 more"
