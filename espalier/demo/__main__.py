"""`make demo`: the main job on a real model, through the real service, from nothing to a table."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from espalier.client import Client
from espalier.demo.corpus import write_corpus
from espalier.demo.model import ModelUnavailable, fetch_model
from espalier.demo.report import read_manifest, render_report
from espalier.demo.server import ServerDidNotStart, running_server
from espalier.errors import EspalierError
from espalier.live import duration, watch_job
from espalier.published import CheckpointFile
from espalier.resources import Job

PROMPT = "The function below reads a file and returns"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    tokens: Annotated[int, typer.Option(min=10_000, help="How much text to train on.")] = 80_000,
    target: Annotated[str, typer.Option(help="Size to prune to: 110M, 30%.")] = "110M",
    model: Annotated[
        Path | None, typer.Option(exists=True, help="Your own model: a directory or a GGUF file.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(exists=True, help="Your own text: a file or a directory.")
    ] = None,
    directory: Annotated[Path, typer.Option(help="Where the demo keeps its files.")] = Path(
        ".demo"
    ),
) -> None:
    """Prune and train a model (SmolLM2-135M) through the service, then open what came out."""
    console = Console()
    try:
        _demo(_Clock(console), directory.resolve(), tokens, target, model, data)
    except (ModelUnavailable, ServerDidNotStart, EspalierError) as error:
        text = f"The demo could not go on: {error}"
        console.print(text, markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        console.print("Stopped. `make demo` goes on from the last checkpoint.")
        raise typer.Exit(130) from None


def _demo(
    clock: "_Clock",
    directory: Path,
    tokens: int,
    target: str,
    own_model: Path | None,
    own_data: Path | None,
) -> None:
    model = own_model.resolve() if own_model else fetch_model(directory / "model")
    clock.say(f"model: {model.name}")
    request = {"model": str(model), "target": target, **_data(directory, tokens, own_data)}
    clock.say(f"text: {request['data']}")
    allowed = (model.parent if model.is_file() else model, Path(request["data"]))
    with (
        running_server(directory / "service", allowed_paths=allowed) as server,
        Client(server.url, server.api_key) as client,
    ):
        job = _find_unfinished(client, request) or client.submit(request)
        clock.say(f"job {job.id}: {target} parameters; watch it at {server.url}/jobs/{job.id}")
        clock.say(f"the dashboard asks for this key: {server.api_key}")
        job = _watch(clock, client, job)
        if job.status != "succeeded":
            raise EspalierError(_ending(job))
        clock.say(f"job {job.status}: {job.outcome}")
        _show_result(clock, client, job, directory / "checkpoint")
    clock.say("service stopped; nothing is left running")


def _data(directory: Path, tokens: int, data: Path | None) -> dict[str, Any]:
    if data is not None:  # may hold far more than one wants to train on in a demo
        return {"data": str(data.resolve()), "schedule": {"num_tokens": tokens}}
    return {"data": str(write_corpus(directory / f"corpus-{tokens}", num_tokens=tokens))}


def _find_unfinished(client: Client, request: dict[str, Any]) -> Job | None:
    """The job of a demo that was interrupted; the service has already gone on with it."""
    for job in client.list_jobs().data:
        if not job.ended and all(job.spec.get(key) == value for key, value in request.items()):
            return job
    return None


def _watch(clock: "_Clock", client: Client, job: Job) -> Job:
    try:
        return watch_job(client, job.id, clock.console)
    except KeyboardInterrupt:
        clock.say("stopping after the running increment; Ctrl-C again stops at once")
        raise


def _show_result(clock: "_Clock", client: Client, job: Job, directory: Path) -> None:
    checkpoints = client.list_checkpoints(job.id)
    target = directory / checkpoints[-1].id
    files = client.download(checkpoints[-1].id, target)
    _check_manifest(target, files)
    clock.say(f"downloaded {len(files)} files to {target}; every sha256 is right")
    clock.say("opened in a fresh Python, it writes:")
    clock.console.print(f"  {_generate(target)}", markup=False, highlight=False)
    params = {item.increment: item.params for item in checkpoints}
    measured = client.list_evaluations(job.id)
    clock.console.print(render_report(read_manifest(target), measured, files, params))


def _check_manifest(directory: Path, files: tuple[CheckpointFile, ...]) -> None:
    """The digests that the download was checked against are those the run itself wrote down."""
    listed = read_manifest(directory)["files"]
    for file in files:
        if file.path in listed and listed[file.path]["sha256"] != file.sha256:
            raise EspalierError(f"{file.path}: the manifest and the server disagree on its sha256")


def _generate(directory: Path) -> str:
    done = subprocess.run(
        (sys.executable, "-m", "espalier.demo.generate", str(directory), PROMPT),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise EspalierError(f"{directory} does not open:\n{done.stderr.strip()}")
    return done.stdout.strip()


def _ending(job: Job) -> str:
    reason = job.error.message if job.error else job.status_reason
    return f"job {job.status}" + (f": {reason}" if reason else "")


class _Clock:
    """Says what happened and how long after the start."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._started_at = time.monotonic()

    def say(self, text: str) -> None:
        elapsed = duration(time.monotonic() - self._started_at)
        self.console.print(f"[{elapsed:>5}] {text}", markup=False, highlight=False, soft_wrap=True)


app()
