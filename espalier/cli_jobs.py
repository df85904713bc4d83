"""`espalier submit | estimate | list | show | watch | …`: jobs from beginning to end."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from espalier.client import Client
from espalier.exit_codes import JOB_CANCELLED, JOB_FAILED
from espalier.live import duration, increments, millions, sizes, watch_job
from espalier.output import (
    AsJson,
    console,
    print_done,
    print_json,
    print_table,
    show_rows,
    table_of,
)
from espalier.resources import Job

jobs = typer.Typer()

JobId = Annotated[str, typer.Argument(help="Id of a job, job_…")]
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


@jobs.command()
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


@jobs.command()
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


@jobs.command("list")
def list_jobs(
    status: Annotated[str | None, typer.Option(help="Only jobs in this status.")] = None,
    name: Annotated[str | None, typer.Option(help="Only jobs whose name contains this.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100)] = 20,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    with Client() as client:
        found = client.list_jobs(limit=limit, status=status, name=name).data
    if as_json:
        print_json(found)
        return
    table = table_of("job", "status", "phase", "parameters", "increment", "left", "name")
    for job in found:
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


@jobs.command()
def show(job_id: JobId, as_json: AsJson = False) -> None:
    """Show one job."""
    with Client() as client:
        _show(client.get(job_id), as_json)


@jobs.command()
def watch(job_id: JobId, as_json: AsJson = False) -> None:
    """Show a job's progress until it has ended."""
    with Client() as client:
        job = watch_job(client, job_id, console(as_json))
    _show(job, as_json)
    _exit_as(job)


@jobs.command()
def logs(
    job_id: JobId,
    attempt: Annotated[int | None, typer.Option(min=1, help="The last one by default.")] = None,
    tail: Annotated[
        int | None, typer.Option(min=1, max=10_000, help="Only the last lines.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print what the run of a job printed."""
    with Client() as client:
        text = client.logs(job_id, attempt=attempt, tail=tail)
    if as_json:
        print_done(as_json, job=job_id, text=text)
    else:
        typer.echo(text, nl=False)


@jobs.command()
def cancel(job_id: JobId, as_json: AsJson = False) -> None:
    """Stop a job; its checkpoints stay."""
    with Client() as client:
        _show(client.cancel(job_id), as_json)


@jobs.command()
def pause(job_id: JobId, as_json: AsJson = False) -> None:
    """Stop a job at its next boundary, to resume it later."""
    with Client() as client:
        _show(client.pause(job_id), as_json)


@jobs.command()
def resume(job_id: JobId, as_json: AsJson = False) -> None:
    """Queue a paused job again."""
    with Client() as client:
        _show(client.resume(job_id), as_json)


@jobs.command()
def retry(job_id: JobId, as_json: AsJson = False) -> None:
    """Queue a failed or cancelled job again, from its last checkpoint."""
    with Client() as client:
        _show(client.retry(job_id), as_json)


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
