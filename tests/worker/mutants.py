"""Taking one guard out of the code, to see that a test notices."""

import inspect
import textwrap
from types import ModuleType
from typing import Any

import pytest


def remove_guard(
    monkeypatch: pytest.MonkeyPatch,
    owner: ModuleType | type,
    name: str,
    old: str,
    new: str,
    *users: ModuleType,
) -> None:
    """Replace `old`, which must stand exactly once in the function, and use the result everywhere.

    `users` are modules that imported the function by name.
    """
    function = inspect.unwrap(getattr(owner, name))
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1, f"the guard {old!r} is not in {name} any more"
    made: dict[str, Any] = {}
    code = compile(source.replace(old, new), f"mutant of {name}", "exec")
    exec(code, function.__globals__, made)
    for place in (owner, *users):
        monkeypatch.setattr(place, name, made[name])
