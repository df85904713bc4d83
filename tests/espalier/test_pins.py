"""constraints.txt is what every installation is made from."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PINS = (ROOT / "constraints.txt").read_text().splitlines()


def test_every_pin_is_a_plain_version() -> None:
    pattern = re.compile(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*")
    assert [line for line in PINS if not pattern.fullmatch(line)] == []


def test_everything_the_project_needs_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    direct = [
        *project["dependencies"],
        *(r for e in project["optional-dependencies"].values() for r in e),
    ]
    pinned = {canonicalize_name(line.partition("==")[0]) for line in PINS}
    assert sorted(_closure(direct) - pinned - {"espalier"}) == []


def _closure(requirements: list[str]) -> set[str]:
    """Names of what `requirements` need on this machine, and of what that needs."""
    seen: set[tuple[str, frozenset[str]]] = set()
    todo = [Requirement(text) for text in requirements]
    while todo:
        requirement = todo.pop()
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key in seen:
            continue
        seen.add(key)
        for text in _requires(requirement.name):
            found = Requirement(text)
            extras = requirement.extras or {""}
            if found.marker is None or any(found.marker.evaluate({"extra": e}) for e in extras):
                todo.append(found)
    return {name for name, _ in seen}


def _requires(name: str) -> list[str]:
    try:
        return [] if name == "espalier" else requires(name) or []
    except PackageNotFoundError:
        return []
