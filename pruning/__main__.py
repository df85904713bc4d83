"""`python -m pruning run RECIPE --out DIR` prunes; `inspect CHECKPOINT` says what one holds;
`export CHECKPOINT --to FORMAT` writes it for another engine.

`run` exits with 0 when finished, or stopped at a training step by SIGTERM or Ctrl-C; with 75
(EX_TEMPFAIL) when trying again may help; with 78 (EX_CONFIG) when the recipe, model or data must
change first. A recipe with several `gpus` or `processes` runs in as many processes, which this one
starts and watches. `wait` imports everything and does then what a line on standard input says.
"""

import argparse
import errno
import json
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from pruning import launch, parked
from pruning.errors import CheckpointCorrupt, InvalidRecipe, PruningError
from pruning.events import Emit, Event, RunFailed, dump_event
from pruning.manifest import TRAINING_STATE, Manifest, read_manifest
from pruning.recipe import Recipe
from pruning.recipe_parts.output import ExportFormat
from pruning.terminal import TerminalProgress

EXIT_RETRYABLE = 75
EXIT_FATAL = 78

logger = logging.getLogger("pruning")


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, run the command, and return the exit status."""
    parsed = _parser().parse_args(arguments)
    if parsed.command == "wait":
        parked.import_everything()
        order = parked.wait_for_order()
        return 0 if order is None else main(["run", *order])
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    if parsed.command == "inspect":
        return _inspect(parsed.checkpoint, parsed.verify)
    if parsed.command == "export":
        return _export(parsed.checkpoint, parsed.to, parsed.out)
    stop = _stop_on_signals()
    if launch.is_rank():
        launch.die_with_parent()
    with _emitter(parsed.events_fd) as emit:
        return _run(parsed, emit, stop)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pruning", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="prune and train as a recipe says")
    run.add_argument("recipe", type=Path, help="recipe as JSON")
    run.add_argument("--out", type=Path, required=True, metavar="DIR", help="checkpoints go here")
    run.add_argument("--resume", type=Path, metavar="CHECKPOINT", help="go on from this increment")
    run.add_argument("--events-fd", type=int, metavar="N", help="write events to this descriptor")
    run.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    run.add_argument("--threads", type=int, metavar="N", help="CPU threads; default: all cores")
    commands.add_parser("wait", help="be ready to run; what, a line on standard input will say")
    inspect = commands.add_parser("inspect", help="say what a checkpoint holds")
    inspect.add_argument("checkpoint", type=Path, metavar="CHECKPOINT_DIR")
    inspect.add_argument("--verify", action="store_true", help="hash every file")
    export = commands.add_parser("export", help="write a checkpoint for other engines, with proof")
    export.add_argument("checkpoint", type=Path, metavar="CHECKPOINT_DIR")
    export.add_argument("--to", required=True, choices=get_args(ExportFormat), metavar="FORMAT")
    export.add_argument("--out", type=Path, metavar="DIR", help="default: its exports/")
    return parser


@dataclass
class _Stop:
    requested: bool = False

    def __call__(self) -> bool:
        return self.requested


def _stop_on_signals() -> _Stop:
    stop = _Stop()

    def request(_signal: int, _frame: object) -> None:
        stop.requested = True
        # A second Ctrl-C ends the process at once; published checkpoints are whole in any case.
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGTERM, request)
    signal.signal(signal.SIGINT, request)
    return stop


@contextmanager
def _emitter(events_fd: int | None) -> Iterator[Emit]:
    if events_fd is None:
        with TerminalProgress() as progress:
            yield progress.show
        return
    with os.fdopen(events_fd, "w", encoding="utf-8", buffering=1) as pipe:

        def emit(event: Event) -> None:
            pipe.write(dump_event(event) + "\n")

        yield emit


def _run(parsed: argparse.Namespace, emit: Emit, stop: _Stop) -> int:
    try:
        recipe = _read_recipe(parsed.recipe)
        if recipe.num_ranks > 1 and not launch.is_rank():
            return _run_spread(parsed, recipe.num_ranks, emit, stop)
        _run_here(parsed, recipe, emit, stop)
    except BrokenPipeError:
        raise  # Nobody reads the events any more.
    except Exception as error:  # The one place that turns any error into an event.
        failure = _failure(error)
        if failure.code == "internal":
            logger.exception("the run failed")
        _tell(failure, emit)
        return EXIT_RETRYABLE if failure.retryable else EXIT_FATAL
    return 0


def _run_here(parsed: argparse.Namespace, recipe: Recipe, emit: Emit, stop: _Stop) -> None:
    # Imported late: a bad recipe is refused at once, without the seconds that torch takes.
    from transformers.utils import logging as transformers_logging

    from pruning.pipeline import run

    transformers_logging.disable_progress_bar()  # The events say how far the run is.
    transformers_logging.set_verbosity_error()

    run(
        recipe,
        parsed.out,
        emit,
        resume_from=parsed.resume,
        stop=stop,
        device=parsed.device,
        threads=parsed.threads,
    )


def _run_spread(parsed: argparse.Namespace, count: int, emit: Emit, stop: _Stop) -> int:
    """The same command in as many processes as the recipe wants."""
    arguments = ["run", str(parsed.recipe), "--out", str(parsed.out), "--device", parsed.device]
    for option in ("resume", "events_fd", "threads"):
        value = getattr(parsed, option)
        if value is not None:
            arguments += [f"--{option.replace('_', '-')}", str(value)]
    fds = () if parsed.events_fd is None else (parsed.events_fd,)
    codes = launch.run_ranks(count, arguments, emit=emit, stop=stop, pass_fds=fds)
    if not any(codes):
        return 0
    return EXIT_FATAL if EXIT_FATAL in codes else EXIT_RETRYABLE


def _tell(failure: RunFailed, emit: Emit) -> None:
    """Report a failure, or leave it to the one that started this process among others."""
    path = os.environ.get(launch.FAILURE_FILE)
    if path is None:
        emit(failure)
    else:
        Path(path).write_text(dump_event(failure), encoding="utf-8")


def _read_recipe(path: Path) -> Recipe:
    try:
        return Recipe.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InvalidRecipe(f"{path}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        message = f"{where}: {first['msg']}" if where else first["msg"]
        raise InvalidRecipe(message, param=where or None) from error


def _failure(error: Exception) -> RunFailed:
    if isinstance(error, PruningError):
        return RunFailed(
            code=error.code,
            message=error.message,
            param=error.param,
            hint=error.hint,
            retryable=error.retryable,
        )
    message = f"{type(error).__name__}: {error}"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return RunFailed(code="storage_full", message=message, retryable=True)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        hint = "Try a smaller recovery.micro_batch_sequences."
        return RunFailed(code="gpu_oom", message=message, hint=hint, retryable=False)
    return RunFailed(code="internal", message=message, retryable=True)


def _inspect(checkpoint: Path, verify: bool) -> int:
    console = Console()
    resumable = (checkpoint / TRAINING_STATE).is_dir()
    verified = 0
    try:
        manifest = read_manifest(checkpoint)
        if verify:
            verified = manifest.verify(checkpoint, training_state=resumable)
    except CheckpointCorrupt as error:
        Console(stderr=True).print(error.message, markup=False)
        return EXIT_FATAL
    console.print(_summary(manifest))
    console.print(_measurements(manifest))
    if verify:
        console.print(f"{verified} files verified", highlight=False)
        if verified < len(manifest.files):
            absent = f"{TRAINING_STATE}/ is absent: {len(manifest.files) - verified} files"
            console.print(f"{absent} that only resuming needs", highlight=False)
    return 0


def _export(checkpoint: Path, export: ExportFormat, out: Path | None) -> int:
    # Imported late: torch takes seconds, and a misspelt format needs none.
    from pruning.export.export import EXPORTS, export_checkpoint, open_canonical

    try:
        canonical = open_canonical(checkpoint)
        exported = export_checkpoint(canonical, export, out or checkpoint / EXPORTS)
    except PruningError as error:
        Console(stderr=True).print(error.message, markup=False)
        return EXIT_FATAL
    console = Console()
    for record in exported.records:
        console.print(
            f"{record.engine_version}, {record.precision}: largest difference "
            f"{record.max_difference:.2g} nats, divergence {record.divergence:.2g}",
            highlight=False,
        )
    console.print(exported.directory, highlight=False)
    return 0


def _summary(manifest: Manifest) -> Table:
    table = Table(show_header=False, box=None)
    sizes = sorted({layer.intermediate_size for layer in manifest.widths})
    groups = sorted({layer.num_key_value_heads for layer in manifest.widths})
    for name, value in (
        ("model", manifest.lineage.model),
        ("increment", f"{manifest.increment}{' (final)' if manifest.final else ''}"),
        ("parameters", f"{manifest.num_parameters:,} of {manifest.base_num_parameters:,}"),
        ("target", f"{manifest.target_num_parameters:,}"),
        ("weights", f"{manifest.num_bytes:,} bytes, {manifest.dtype}"),
        ("training tokens", f"{manifest.num_tokens:,} in {manifest.step:,} steps"),
        ("intermediate sizes", f"{sizes[0]} to {sizes[-1]}"),
        ("KV groups", f"{groups[0]} to {groups[-1]}"),
        ("created", manifest.created_at.isoformat(timespec="seconds")),
        ("versions", json.dumps(manifest.versions)),
    ):
        table.add_row(name, value)
    return table


def _measurements(manifest: Manifest) -> Table:
    table = Table("increment", "stage", "metric", "value", "± stderr")
    for m in manifest.measurements:
        stderr = "" if m.stderr is None else f"{m.stderr:.2f}"
        table.add_row(str(m.increment), m.stage, m.metric, f"{m.value:,.2f}", stderr)
    return table


if __name__ == "__main__":
    sys.exit(main())
