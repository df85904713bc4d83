"""`espalier files`: text sent to the server for jobs to read."""

from pathlib import Path
from typing import Annotated

import typer

from espalier.client import Client
from espalier.output import AsJson, print_done, print_json, print_table, table_of

files = typer.Typer(no_args_is_help=True, help="Text sent to the server for jobs to read.")


@files.command("upload")
def upload_files(
    paths: Annotated[list[Path], typer.Argument(help="Text: .txt, .md, .jsonl or .parquet.")],
    as_json: AsJson = False,
) -> None:
    """Send text for jobs to read; a broken connection is taken up again."""
    with Client() as client:
        found = [client.upload(path) for path in paths]
    if as_json:
        print_json(found)
        return
    for file in found:
        typer.echo(f"{file.id}  {file.name}")


@files.command("list")
def list_sent_files(
    limit: Annotated[int, typer.Option(min=1, max=100)] = 20, as_json: AsJson = False
) -> None:
    """List uploaded files, newest first."""
    with Client() as client:
        found = client.list_files_sent(limit=limit).data
    if as_json:
        print_json(found)
        return
    table = table_of("file", "name", "status", "bytes")
    for file in found:
        table.add_row(file.id, file.name, file.status, f"{file.offset:,}")
    print_table(table)


@files.command("delete")
def delete_file(
    file_id: Annotated[str, typer.Argument(help="Id of a file, file_…")], as_json: AsJson = False
) -> None:
    """Forget an uploaded file."""
    with Client() as client:
        client.delete_file(file_id)
    print_done(as_json, id=file_id, deleted=True)
