"""Held out or not is a property of the prompt."""

from __future__ import annotations

import hashlib

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.data.rows import are_held_out, encode, is_held_out, split_at

prompts = st.one_of(st.text(max_size=20), st.text(max_size=20).map(lambda text: ({"role": "user", "content": text},)))


@given(prompt=prompts, small=st.floats(0, 1), large=st.floats(0, 1))
def test_a_prompt_held_out_at_one_fraction_is_held_out_at_a_larger_one(prompt, small: float, large: float) -> None:
    small, large = sorted((small, large))
    assert not is_held_out(prompt, "text", small) or is_held_out(prompt, "text", large)
    assert not is_held_out(prompt, "text", 0.0)
    assert is_held_out(prompt, "text", 1.0)


@given(text=st.text(max_size=20), fraction=st.floats(0, 1))
def test_a_prompt_and_its_parquet_cell_fall_on_the_same_side(text: str, fraction: float) -> None:
    prompt = ({"role": "user", "content": text},)
    assert is_held_out(prompt, "chat", fraction) == is_held_out(encode(prompt), "chat", fraction)


def test_the_share_of_prompts_held_out_is_the_fraction() -> None:
    held_out = sum(is_held_out(f"prompt {number}", "text", 0.1) for number in range(20_000))
    assert abs(held_out / 20_000 - 0.1) < 4 * (0.1 * 0.9 / 20_000) ** 0.5


@settings(deadline=None)
@given(text=st.text(max_size=20), fraction=st.floats(0, 1))
def test_a_prompt_stands_where_its_hash_says_and_many_are_split_as_one_is(text: str, fraction: float) -> None:
    expected = int(hashlib.sha256(f"text\n{text}".encode()).hexdigest()[:16], 16) / 2**64
    assert split_at(text, "text") == expected
    assert are_held_out(pa.array([expected]), fraction).to_pylist() == [is_held_out(text, "text", fraction)]
