"""YAML as people mean it: safe, and a key that stands twice is refused, as one of the two would be lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from alignment.errors import BadInput


class StrictLoader(yaml.SafeLoader):
    """The safe loader, refusing repeated keys of one mapping (merged ones may be overridden)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge" or not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"key '{key.value}' appears twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def read_yaml(path: Path, what: str) -> dict[str, Any]:
    """The mapping in a YAML file; raises `BadInput` naming the file, and the row where there is one."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BadInput(f"no such {what}", file=str(path)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"cannot be read: {error}", file=str(path)) from error
    try:
        data = yaml.load(text, StrictLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error) or "not YAML"
        row = None if mark is None else mark.line + 1
        raise BadInput(f"malformed YAML: {problem}", file=str(path), row=row) from error
    if not isinstance(data, dict):
        raise BadInput(f"a {what} is a mapping of keys to values", file=str(path))
    return data
