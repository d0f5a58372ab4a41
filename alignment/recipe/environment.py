"""Names of environment variables, which is how a recipe speaks of secrets."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator


def _checked(value: str) -> str:
    # the value is not repeated: whoever writes the secret itself here must not find it in a log
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
        raise ValueError("is the name of an environment variable that holds the secret, not the secret itself")
    return value


VariableName = Annotated[str, AfterValidator(_checked)]
"""The name of an environment variable; the secret in it stands in no recipe."""
