"""A run's events for a person: a progress bar on a terminal, plain lines elsewhere."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pruning.events import (
    EvaluationFinished,
    Event,
    IncrementFinished,
    PhaseChanged,
    PruneFinished,
    RunFailed,
    RunFinished,
    RunStarted,
    RunStopped,
    RunWarning,
    StepFinished,
    TextMeasured,
    TextRead,
)


class TerminalProgress:
    """Shows events on stderr; used as a context manager around the run."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task("starting", total=None, figures="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def show(self, event: Event) -> None:
        """Bring the display up to date with one event."""
        match event:
            case PhaseChanged():
                self._progress.update(
                    self._task, description=f"increment {event.increment}: {event.phase}"
                )
            case TextRead():
                figures = f"{event.num_documents:,} documents, {event.num_tokens:,} tokens"
                self._progress.update(self._task, figures=figures)
            case TextMeasured():
                figures = f"{event.num_tokens:,} tokens measured"
                self._progress.update(self._task, figures=figures)
            case StepFinished():
                figures = f"loss {event.loss:.3f}  {event.tokens_per_second:,.0f} tokens/s"
                self._progress.update(self._task, completed=event.num_tokens, figures=figures)
            case RunStarted():
                self._progress.update(self._task, total=event.num_tokens or None)
        if line := describe(event):
            self._console.print(line, highlight=False, markup=False)


def describe(event: Event) -> str | None:
    """One line for what a person wants to keep on the screen, None for what only moves the bar."""
    match event:
        case RunStarted():
            return (
                f"{event.num_parameters:,} parameters to {event.target_num_parameters:,} "
                f"in {event.num_increments} increments over {event.num_tokens:,} tokens, "
                f"on {event.device}"
            )
        case PruneFinished():
            return (
                f"increment {event.increment}: cut from {event.num_parameters_before:,} "
                f"to {event.num_parameters:,} parameters"
            )
        case EvaluationFinished():
            return f"increment {event.increment}: {event.metric} {event.value:.2f} ({event.stage})"
        case _:
            return _describe_ending(event)


def _describe_ending(event: Event) -> str | None:
    match event:
        case IncrementFinished():
            return f"increment {event.increment}: checkpoint in {event.directory}"
        case RunWarning():
            return f"warning: {event.message}"
        case RunFinished():
            return f"finished: {event.outcome}, {event.num_parameters:,} parameters"
        case RunStopped():
            return f"stopped after increment {event.increment}; go on with --resume"
        case RunFailed():
            return f"failed: {event.message}" + (f" ({event.hint})" if event.hint else "")
        case _:
            return None
