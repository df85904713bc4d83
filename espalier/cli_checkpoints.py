"""`espalier checkpoints | download | link`: what jobs have published."""

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

from espalier import errors
from espalier.client import Client
from espalier.live import millions
from espalier.operations import TRAINING_STATE
from espalier.output import AsJson, console, print_json, print_table, table_of
from espalier.published import Checkpoint

published = typer.Typer()

JobId = Annotated[str, typer.Argument(help="Id of a job, job_…")]


@published.command("checkpoints")
def list_checkpoints(job_id: JobId, as_json: AsJson = False) -> None:
    """List the models a job has published."""
    with Client() as client:
        found = client.list_checkpoints(job_id)
    if as_json:
        print_json(found)
        return
    table = table_of("checkpoint", "increment", "parameters", "MB", "dtype", "published")
    for item in found:
        table.add_row(
            item.id,
            str(item.increment),
            millions(item.params),
            f"{item.size_bytes / 1e6:.1f}",
            item.dtype,
            item.created_at.astimezone().strftime("%Y-%m-%d %H:%M"),
        )
    print_table(table)


@published.command()
def download(
    source: Annotated[str, typer.Argument(help="A checkpoint, or a job for its latest one.")],
    directory: Annotated[Path, typer.Argument(help="Where to put the files.")],
    training_state: Annotated[
        bool, typer.Option("--training-state", help="Also what resuming the run would need.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Fetch a checkpoint, going on where an earlier download stopped, and verify every digest."""
    with Client() as client:
        checkpoint = _find_checkpoint(client, source)
        listed = client.list_files(checkpoint.id)
        wanted = [f for f in listed if training_state or not f.path.startswith(TRAINING_STATE)]
        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with Progress(*columns, console=console(as_json)) as progress:
            bar = progress.add_task(checkpoint.id, total=sum(file.size for file in wanted))
            client.download(
                checkpoint.id,
                directory,
                training_state=training_state,
                on_bytes=lambda count: progress.advance(bar, count),
            )
    if as_json:
        print_json(wanted)
    else:
        typer.echo(f"{len(wanted)} files of {checkpoint.id} in {directory}, every sha256 right")


@published.command()
def link(
    source: Annotated[str, typer.Argument(help="A checkpoint, or a job for its latest one.")],
    path: Annotated[str | None, typer.Option(help="One file; all by default.")] = None,
    expires: Annotated[int, typer.Option(min=1, max=604_800, help="Seconds.")] = 3600,
    as_json: AsJson = False,
) -> None:
    """Print a URL that downloads a checkpoint without a key, for a while."""
    with Client() as client:
        checkpoint = _find_checkpoint(client, source)
        found = client.download_url(checkpoint.id, path, expires_in_seconds=expires)
    if as_json:
        print_json(found)
    else:
        typer.echo(found.url)


def _find_checkpoint(client: Client, source: str) -> Checkpoint:
    if not source.startswith("job_"):
        return client.get_checkpoint(source)
    found = client.list_checkpoints(source)
    if not found:
        raise errors.EspalierError(f"{source} has published no checkpoint yet")
    return found[-1]
