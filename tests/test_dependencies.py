"""What the project asks for and what the lock file installs are of one mind."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = Path(__file__).resolve().parents[1]
BOUNDED = ("dagster", "datasets", "lm-eval", "mlflow", "pandas", "pyarrow", "pydantic", "torch", "transformers", "trl")
"""Libraries of which a later release has changed, or may change, what is used here."""


def asked() -> list[Requirement]:
    told = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
    return [Requirement(line) for line in told["project"]["dependencies"]]


def locked() -> dict[str, str]:
    lines = (PROJECT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if "==" in line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pins}


@pytest.mark.parametrize("requirement", asked(), ids=lambda requirement: requirement.name)
def test_the_lock_file_pins_a_version_within_the_bounds(requirement: Requirement) -> None:
    assert requirement.specifier.contains(locked()[canonicalize_name(requirement.name)])


@pytest.mark.parametrize("name", BOUNDED)
def test_a_library_whose_next_release_may_break_things_has_an_upper_bound(name: str) -> None:
    (requirement,) = (one for one in asked() if one.name == name)
    assert any(clause.operator.startswith("<") for clause in requirement.specifier)
