"""The `espalier` command as a whole: which commands there are, and what all of them can do."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from typer.core import TyperGroup
from typer.main import get_command
from typer.testing import CliRunner

from espalier.cli import app
from tests.espalier.conftest import Furnished

COMMANDS = {
    *("up", "login", "estimate", "submit", "list", "show", "watch", "logs"),
    *("pause", "resume", "cancel", "retry", "checkpoints", "download", "compare"),
    *("models", "keys", "backup", "restore", "fsck"),
}


def _commands(command: Any, *path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(command, TyperGroup):
        for name, part in command.commands.items():
            yield from _commands(part, *path, name)
    else:
        yield " ".join(path), command


def test_every_command_is_there_and_prints_json_when_asked() -> None:
    found = dict(_commands(get_command(app)))
    assert {name.partition(" ")[0] for name in found} >= COMMANDS
    without = {
        name
        for name, command in found.items()
        if not any("--json" in option.opts for option in command.params)
    }
    assert without == set()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_is_told_how_to_complete_commands(shell: str) -> None:
    said = CliRunner().invoke(
        app, [], env={"_ESPALIER_COMPLETE": f"source_{shell}"}, prog_name="espalier"
    )
    assert "_ESPALIER_COMPLETE" in said.output
    words = {"bash": {"COMP_WORDS": "espalier webh", "COMP_CWORD": "1"}}.get(shell)
    if words is not None:
        environment = {"_ESPALIER_COMPLETE": f"complete_{shell}", **words}
        completed = CliRunner().invoke(app, [], env=environment, prog_name="espalier")
        assert "webhooks" in completed.output


def test_what_has_nothing_to_show_says_in_json_what_was_done(
    server: Furnished, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ESPALIER_URL", server.url)
    monkeypatch.setenv("ESPALIER_API_KEY", server.holder.secret)
    run = CliRunner()
    made = json.loads(run.invoke(app, ["keys", "create", "--scope", "jobs:read", "--json"]).output)
    said = run.invoke(app, ["keys", "revoke", made["id"], "--json"]).output
    assert json.loads(said) == {"id": made["id"], "revoked": True}
