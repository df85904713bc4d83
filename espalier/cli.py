"""The `espalier` command.

Exit codes: 0 done · 1 the job failed · 2 wrong usage · 3 the server refused the request ·
4 the key is missing or refused · 5 the server is unreachable or failed · 6 a download does not
match its digest · 7 the job was cancelled · 130 interrupted.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

from espalier import errors, maintenance
from espalier.cli_files import files
from espalier.cli_keys import keys
from espalier.cli_models import comparisons, models
from espalier.cli_push import publishing
from espalier.client import TRAINING_STATE, Client
from espalier.connection import default_data_dir
from espalier.live import duration, increments, millions, sizes, watch_job
from espalier.output import AsJson, console, print_json, print_table, show_rows, table_of
from espalier.resources import Checkpoint, Job
from espalier.up import Options, UpError, serve

JOB_FAILED = 1
JOB_CANCELLED = 7
_EXIT_CODES: dict[type[Exception], int] = {
    errors.NotAuthorized: 4,
    errors.ServerFailed: 5,
    errors.ServerUnreachable: 5,
    errors.ChecksumMismatch: 6,
    errors.EspalierError: 3,
}


class _Commands(typer.core.TyperGroup):
    """Says what went wrong in one line and exits with its code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except errors.EspalierError as error:
            typer.echo(f"espalier: {error}", err=True)
            code = next(c for kind, c in _EXIT_CODES.items() if isinstance(error, kind))
            raise typer.Exit(code) from error
        except KeyboardInterrupt:
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Give it a model, the size you want and your text; get back a model of that size.",
    epilog="Exit codes: 0 done, 1 job failed, 2 usage, 3 refused, 4 key, 5 server, 6 digest, "
    "7 job cancelled, 130 interrupted.",
)
app.add_typer(keys, name="keys")
app.add_typer(files, name="files")
app.add_typer(models, name="models")
app.add_typer(comparisons)
app.add_typer(publishing)
app.add_typer(maintenance.app)

JobId = Annotated[str, typer.Argument(help="Id of a job, job_…")]


# --- server ----------------------------------------------------------------------------------


@app.command()
def up(
    host: Annotated[str, typer.Option(envvar="ESPALIER_HOST", help="Address to listen on.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(envvar="ESPALIER_PORT", help="0 takes a free one.")] = 8000,
    data_dir: Annotated[
        Path | None, typer.Option(help="Where everything is kept. Also ESPALIER_DATA_DIR.")
    ] = None,
    allow_path: Annotated[
        list[Path] | None,
        typer.Option(help="Jobs may read models and text under this directory. Repeatable."),
    ] = None,
    stop_timeout: Annotated[
        float, typer.Option(help="Seconds the worker gets to reach a boundary.")
    ] = 150,
) -> None:
    """Run the whole service on this machine until Ctrl-C: API, dashboard, worker, sweeper."""
    options = Options(
        host=host,
        port=port,
        data_dir=(data_dir or default_data_dir()).expanduser().absolute(),
        allowed_paths=tuple(path.expanduser().resolve() for path in allow_path or ()),
        stop_seconds=stop_timeout,
    )
    try:
        serve(options)
    except UpError as error:
        typer.echo(f"espalier up: {error}", err=True)
        raise typer.Exit(1) from error


# --- jobs ------------------------------------------------------------------------------------


ModelName = Annotated[
    str, typer.Argument(help="org/name[@revision], or a path the server may read.")
]
TargetSize = Annotated[str, typer.Argument(help="100M, 1.5B, or 30% of the prunable parameters.")]
DataName = Annotated[
    str,
    typer.Argument(help="org/name[:config], file_…, a path on the server, or @file to send."),
]
RecipeFile = Annotated[
    Path | None, typer.Option(help="JSON file with further fields of the request.")
]


@app.command()
def submit(
    model: ModelName,
    target: TargetSize,
    data: DataName,
    name: Annotated[str | None, typer.Option(help="A name for people.")] = None,
    recipe: RecipeFile = None,
    watch: Annotated[bool, typer.Option("--watch", help="Stay and show the progress.")] = False,
    as_json: AsJson = False,
) -> None:
    """Create a job."""
    with Client() as client:
        request = _job_request(model, target, _sent(client, data), recipe)
        if name is not None:
            request["name"] = name
        job = client.submit(request)
        _show(job, as_json)
        if watch:
            _exit_as(watch_job(client, job.id, console(as_json)))


@app.command()
def estimate(
    model: ModelName,
    target: TargetSize,
    data: DataName,
    recipe: RecipeFile = None,
    as_json: AsJson = False,
) -> None:
    """Say what a job would lead to, without creating it."""
    with Client() as client:
        request = _job_request(model, target, _sent(client, data), recipe)
        found = client.estimate(request)
    if as_json:
        print_json(found)
        return
    smallest = min(found.targets, key=lambda size: size.params)
    show_rows(
        {
            "model": f"{millions(found.model.params)} parameters ({found.model.model_type})",
            "result": f"{millions(smallest.params)}, {smallest.size_bytes / 1e6:.1f} MB",
            "floor": millions(found.floor.params),
            "increments": str(len(found.increments)),
            "tokens": f"{found.tokens:,}" if found.tokens is not None else None,
            "memory": f"{found.peak_memory_bytes / 1e9:.1f} GB",
            "storage": f"{found.storage_bytes / 1e9:.1f} GB",
            "time": duration(found.time.seconds) if found.time.estimate_available else None,
        }
    )


def _job_request(model: str, target: str, data: str, recipe: Path | None) -> dict[str, Any]:
    request: dict[str, Any] = json.loads(recipe.read_text()) if recipe else {}
    return request | {"model": _absolute(model), "target": target, "data": _absolute(data)}


def _sent(client: Client, data: str) -> str:
    """The data as the server knows it: a file given as @path is uploaded first."""
    return client.upload(Path(data[1:])).id if data.startswith("@") else data


@app.command("list")
def list_jobs(
    status: Annotated[str | None, typer.Option(help="Only jobs in this status.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100)] = 20,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    with Client() as client:
        jobs = client.list_jobs(limit=limit, status=status).data
    if as_json:
        print_json(jobs)
        return
    table = table_of("job", "status", "phase", "parameters", "increment", "left", "name")
    for job in jobs:
        progress = job.progress
        table.add_row(
            job.id,
            job.status,
            job.phase,
            sizes(progress),
            increments(progress),
            duration(progress.eta_seconds),
            job.name,
        )
    print_table(table)


@app.command()
def show(job_id: JobId, as_json: AsJson = False) -> None:
    """Show one job."""
    with Client() as client:
        _show(client.get(job_id), as_json)


@app.command()
def watch(job_id: JobId, as_json: AsJson = False) -> None:
    """Show a job's progress until it has ended."""
    with Client() as client:
        job = watch_job(client, job_id, console(as_json))
    _show(job, as_json)
    _exit_as(job)


@app.command()
def logs(
    job_id: JobId,
    attempt: Annotated[int | None, typer.Option(min=1, help="The last one by default.")] = None,
    tail: Annotated[
        int | None, typer.Option(min=1, max=10_000, help="Only the last lines.")
    ] = None,
) -> None:
    """Print what the run of a job printed."""
    with Client() as client:
        typer.echo(client.logs(job_id, attempt=attempt, tail=tail), nl=False)


@app.command()
def cancel(job_id: JobId, as_json: AsJson = False) -> None:
    """Stop a job; its checkpoints stay."""
    with Client() as client:
        _show(client.cancel(job_id), as_json)


@app.command()
def pause(job_id: JobId, as_json: AsJson = False) -> None:
    """Stop a job at its next boundary, to resume it later."""
    with Client() as client:
        _show(client.pause(job_id), as_json)


@app.command()
def resume(job_id: JobId, as_json: AsJson = False) -> None:
    """Queue a paused job again."""
    with Client() as client:
        _show(client.resume(job_id), as_json)


@app.command()
def retry(job_id: JobId, as_json: AsJson = False) -> None:
    """Queue a failed or cancelled job again, from its last checkpoint."""
    with Client() as client:
        _show(client.retry(job_id), as_json)


# --- checkpoints -----------------------------------------------------------------------------


@app.command()
def checkpoints(job_id: JobId, as_json: AsJson = False) -> None:
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


@app.command()
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


@app.command()
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


# --- output ----------------------------------------------------------------------------------


def _absolute(value: str) -> str:
    """What plainly is a path as the server sees it; anything else untouched."""
    if value.startswith(("./", "../", "~")) or value in (".", ".."):
        return str(Path(value).expanduser().resolve())
    return value


def _show(job: Job, as_json: bool) -> None:
    if as_json:
        print_json(job)
        return
    rows = {
        "job": job.id,
        "name": job.name,
        "status": job.status if job.phase is None else f"{job.status} ({job.phase})",
        "why": job.error.message if job.error else job.status_reason,
        "outcome": job.outcome,
        "parameters": sizes(job.progress),
        "increments": increments(job.progress),
        "checkpoint": job.latest_checkpoint,
        "can": ", ".join(job.allowed_actions),
    }
    show_rows(rows)


def _exit_as(job: Job) -> None:
    if job.status != "succeeded":
        raise typer.Exit(JOB_CANCELLED if job.status == "cancelled" else JOB_FAILED)
