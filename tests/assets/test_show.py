"""What Dagster shows of a materialization: its order, its links, and that text from outside stays text."""

from __future__ import annotations

import pytest

from assets.building.show import code, escaped, table

HOSTILE = [
    "![a](http://evil.example/x.png)",
    "<img src=x onerror=alert(1)>",
    "[click](javascript:alert(1))",
    "http://evil.example and www.evil.example and a@evil.example",
    "**bold** _italic_ `code` ~~gone~~",
    "one | two\nthree",
    "- a list",
    "# a heading &lt;b&gt; $x$",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_text_from_outside_is_shown_as_it_is(text: str) -> None:
    from markdown_it import MarkdownIt

    parser = MarkdownIt("gfm-like", {"html": True, "linkify": False})
    for markdown in (f"- {escaped(text)}", table(("reason",), [(text,)])):
        tokens = [token for block in parser.parse(markdown) for token in [block, *(block.children or [])]]
        kinds = {token.type for token in tokens}
        assert not kinds & {"image", "link_open", "html_inline", "html_block", "strong_open", "em_open", "s_open"}
        assert not kinds & {"code_inline", "heading_open"}
        assert "".join(token.content for token in tokens if token.type in ("text", "text_special")).removeprefix(
            "reason"
        ) == " ".join(text.split())


def test_names_of_metrics_and_numbers_stay_readable() -> None:
    assert escaped("ifeval prompt_level_strict_acc") == "ifeval prompt_level_strict_acc"
    assert table(("n",), [("+0.4720 (95 %)",), (-0.5,)]).splitlines()[2:] == ["| +0.4720 (95 %) |", "| -0.5 |"]


def test_a_code_block_ends_where_its_text_ends() -> None:
    text = "name: mine\n# ```\ndescription: '````'\n"
    assert code(text, "yaml") == f"`````yaml\n{text.rstrip()}\n`````"
