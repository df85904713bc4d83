"""How commands print: rows for people, JSON for programs."""

import json
import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

_PIPE_COLUMNS = 200
_IDS = ("job", "checkpoint", "file", "key", "model", "webhook", "delivery")
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def console(as_json: bool) -> Console:
    """Where a person reads; not standard output when that is for JSON."""
    return Console(stderr=as_json)


def show_rows(rows: dict[str, str | None]) -> None:
    """Print names and what is known of them."""
    table = Table.grid(padding=(0, 2))
    for label, value in rows.items():
        if value:
            table.add_row(label, value)
    print_table(table)


def table_of(*headings: str) -> Table:
    """An empty table; ids in it stay whole."""
    table = Table(box=None)
    for heading in headings:
        # An id that is cut off is of no use.
        table.add_column(heading, no_wrap=heading in _IDS, overflow="fold")
    return table


def print_table(table: Table) -> None:
    """Print a table, as wide as it needs to be where no person looks."""
    terminal = Console()
    if not terminal.is_terminal:
        terminal = Console(width=_PIPE_COLUMNS)
    terminal.print(table)


def print_done(as_json: bool, **what: str | bool) -> None:
    """Say in JSON what was done; a person sees that it was by there being no error."""
    if as_json:
        typer.echo(json.dumps(what))


def print_json(value: BaseModel | Sequence[BaseModel]) -> None:
    """Print one resource, or a list of them."""
    if isinstance(value, BaseModel):
        typer.echo(value.model_dump_json(indent=2))
    else:
        json.dump([item.model_dump(mode="json") for item in value], sys.stdout, indent=2)
        typer.echo()
