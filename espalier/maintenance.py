"""`espalier fsck | gc | backup | restore`: the registry's own commands, for the service kept here.

What users install has no registry; where a service runs there is one, in the same interpreter.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from espalier.connection import default_data_dir
from espalier.errors import EspalierError

DataDir = Annotated[Path | None, typer.Option(help="As given to `up`.")]
app = typer.Typer()


@app.command()
def fsck(data_dir: DataDir = None) -> None:
    """Hash everything stored here and report in JSON; exit with 1 if something is lost."""
    _run(data_dir, "fsck")


@app.command()
def gc(data_dir: DataDir = None) -> None:
    """Delete now what no checkpoint refers to; a running service does so by itself."""
    _run(data_dir, "gc")


@app.command()
def backup(
    directory: Annotated[Path, typer.Argument(help="New or empty.")],
    blobs: Annotated[bool, typer.Option(help="Copy the artifacts too.")] = True,
    data_dir: DataDir = None,
) -> None:
    """Back up the service kept here; it may be running."""
    _run(data_dir, "backup", str(directory.absolute()), *([] if blobs else ["--no-blobs"]))


@app.command()
def restore(
    directory: Annotated[Path, typer.Argument(help="What `backup` wrote.")],
    verify: Annotated[bool, typer.Option("--verify", help="Check everything afterwards.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Fill an empty service from a backup; running jobs go on when it is started."""
    _run(data_dir, "restore", str(directory.absolute()), *(["--verify"] if verify else []))


def _run(data_dir: Path | None, *words: str) -> None:
    if find_spec("registry") is None:
        raise EspalierError("this runs where the service does: pip install 'espalier[api]'")
    directory = (data_dir or default_data_dir()).expanduser().absolute()
    environment = {**os.environ, "ESPALIER_DATA_DIR": str(directory)}
    done = subprocess.run((sys.executable, "-m", "registry", *words), env=environment, check=False)
    if done.returncode != 0:
        raise typer.Exit(1)
