"""`espalier fsck | gc | backup | restore`: the registry's own commands, for the service kept here.

They report in JSON, a document to a line; a person gets their rows.

What users install has no registry; where a service runs there is one, in the same interpreter.
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from espalier.connection import default_data_dir
from espalier.errors import EspalierError
from espalier.output import AsJson, show_rows

DataDir = Annotated[Path | None, typer.Option(help="As given to `up`.")]
app = typer.Typer()


@app.command()
def fsck(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Hash everything stored here; exit with 1 if something is lost."""
    _run(data_dir, as_json, "fsck")


@app.command()
def gc(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Delete now what no checkpoint refers to; a running service does so by itself."""
    _run(data_dir, as_json, "gc")


@app.command()
def backup(
    directory: Annotated[Path, typer.Argument(help="New or empty.")],
    blobs: Annotated[bool, typer.Option(help="Copy the artifacts too.")] = True,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Back up the service kept here; it may be running."""
    words = [] if blobs else ["--no-blobs"]
    _run(data_dir, as_json, "backup", str(directory.absolute()), *words)


@app.command()
def restore(
    directory: Annotated[Path, typer.Argument(help="What `backup` wrote.")],
    verify: Annotated[bool, typer.Option("--verify", help="Check everything afterwards.")] = False,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Fill an empty service from a backup; running jobs go on when it is started."""
    words = ["--verify"] if verify else []
    _run(data_dir, as_json, "restore", str(directory.absolute()), *words)


def _run(data_dir: Path | None, as_json: bool, *words: str) -> None:
    if find_spec("registry") is None:
        raise EspalierError("this runs where the service does: pip install 'espalier[api]'")
    directory = (data_dir or default_data_dir()).expanduser().absolute()
    environment = {**os.environ, "ESPALIER_DATA_DIR": str(directory)}
    command = (sys.executable, "-m", "registry", *words)
    done = subprocess.run(command, env=environment, check=False, stdout=subprocess.PIPE, text=True)
    for document in done.stdout.splitlines():
        if as_json:
            typer.echo(document)
        else:
            show_rows({name: _said(value) for name, value in json.loads(document).items()})
    if done.returncode != 0:
        raise typer.Exit(1)


def _said(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{_said(item)} {name}" for name, item in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(_said, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)
