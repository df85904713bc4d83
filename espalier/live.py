"""A job as it goes, in a terminal: a live view for people, plain lines for logs and pipes."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bars
from rich.table import Table

from espalier.client import Client
from espalier.resources import Event, Job, Metrics, Progress

_LINE_SECONDS = 15.0
_DASH = "-"


@dataclass(frozen=True, kw_only=True)
class View:
    """What is shown of a job: its last state, and the last loss and perplexity it reported."""

    job: Job
    increment: int = 0
    step: int = 0
    loss: float | None = None
    perplexity: float | None = None

    def after(self, job: Job, events: Iterable[Event], metrics: Metrics) -> "View":
        """This view once `job` has been read again, `events` happened and `metrics` came in."""
        view = replace(self, job=job)
        if metrics.step:
            view = replace(view, step=metrics.step[-1], loss=metrics.last("loss"))
        for event in events:
            view = _after_event(view, event)
        return view


def _after_event(view: View, event: Event) -> View:
    data = event.data
    increment = data.get("increment", view.increment)
    if event.type == "eval.completed" and data.get("metric") == "perplexity":
        return replace(view, increment=increment, perplexity=float(data["value"]))
    return replace(view, increment=increment)


def watch_job(client: Client, job_id: str, console: Console, *, poll_seconds: float = 1.0) -> Job:
    """Show the job until it has ended; the job as it ended."""
    view = View(job=client.get(job_id))
    follow = _draw if console.is_terminal else _print_lines
    return follow(client, view, console, poll_seconds)


def _advance(client: Client, view: View, job: Job, events: Iterable[Event]) -> View:
    return view.after(job, events, client.metrics(job.id, from_step=view.step + 1))


def _draw(client: Client, view: View, console: Console, poll_seconds: float) -> Job:
    with Live(render(view), console=console, refresh_per_second=4) as live:
        for job, events in client.stream(view.job.id, poll_seconds=poll_seconds):
            for event in events:
                if text := describe(event):
                    live.console.print(text, highlight=False, markup=False)
            view = _advance(client, view, job, events)
            live.update(render(view))
    return view.job


def _print_lines(client: Client, view: View, console: Console, poll_seconds: float) -> Job:
    said_at, said = float("-inf"), ("", "", 0)
    for job, events in client.stream(view.job.id, poll_seconds=poll_seconds):
        for event in events:
            if text := describe(event):
                console.print(text, highlight=False, markup=False, soft_wrap=True)
        view = _advance(client, view, job, events)
        now = (job.status, job.phase or "", view.increment)
        if now != said or time.monotonic() - said_at >= _LINE_SECONDS:
            console.print(one_line(view), highlight=False, markup=False, soft_wrap=True)
            said_at, said = time.monotonic(), now
    return view.job


def one_line(view: View) -> str:
    """The view as one line of a log."""
    return "  ".join(f"{name} {value}" for name, value in _figures(view) if value != _DASH)


def render(view: View) -> RenderableType:
    """The view as a bar over a table of figures."""
    bar = Bars(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TaskProgressColumn(),
        expand=True,
    )
    done = round(view.job.progress.fraction * 1000)
    bar.add_task(view.job.name or view.job.id, total=1000, completed=done)
    table = Table.grid(padding=(0, 2))
    figures = _figures(view)
    for _ in figures:
        table.add_column(justify="left", no_wrap=True)
    table.add_row(*(f"[dim]{name}[/dim]" for name, _ in figures))
    table.add_row(*(value for _, value in figures))
    return Group(bar, table)


def _figures(view: View) -> list[tuple[str, str]]:
    job, progress = view.job, view.job.progress
    return [
        ("status", job.status),
        ("phase", job.phase or _DASH),
        ("increment", increments(progress, at_least=view.increment)),
        ("parameters", sizes(progress)),
        ("loss", _number(view.loss, 3)),
        ("perplexity", _number(view.perplexity, 2)),
        ("tokens/s", _number(progress.tokens_per_s, 0)),
        ("left", duration(progress.eta_seconds) if progress.estimate_available else _DASH),
    ]


def describe(event: Event) -> str | None:
    """An event worth a line of its own, or None."""
    data = event.data
    at = event.created_at.astimezone().strftime("%H:%M:%S")
    if event.type == "eval.completed" and data.get("metric") == "perplexity":
        stage, value = data.get("stage"), float(data["value"])
        return f"{at}  increment {data.get('increment')}: perplexity {value:.2f} ({stage})"
    if event.type == "checkpoint.created":
        size = millions(data.get("num_parameters"))
        return f"{at}  increment {data.get('increment')}: checkpoint of {size} parameters"
    if event.level != "info" or event.type == "job.retrying":
        return f"{at}  {event.type}: {_reason(data)}"
    return None


def _reason(data: dict[str, Any]) -> str:
    return next((str(data[key]) for key in ("message", "reason", "cause") if data.get(key)), "")


def sizes(progress: Progress) -> str:
    """Parameters now and to reach."""
    if progress.params_now is None:
        return _DASH
    return f"{millions(progress.params_now)} → {millions(progress.params_target)}"


def increments(progress: Progress, *, at_least: int = 0) -> str:
    """The increment a job is in, or has finished, of those planned."""
    if progress.increments_planned is None:
        return _DASH
    return f"{max(at_least, progress.increments_done)}/{progress.increments_planned}"


def millions(count: int | None) -> str:
    """A parameter count in millions, as people say it."""
    return _DASH if count is None else f"{count / 1e6:.2f}M"


def duration(seconds: float | None) -> str:
    """Hours, minutes and seconds, the leading zeros left out."""
    if seconds is None:
        return _DASH
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _number(value: float | None, digits: int) -> str:
    return _DASH if value is None else f"{value:,.{digits}f}"
