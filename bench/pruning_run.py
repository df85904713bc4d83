"""One run of the library without training, its processor time and memory measured apart.

    python -m bench.pruning_run RECIPE.json OUT_DIR

Leaves in OUT_DIR one JSON line per published size: what the cuts to it took. Called again, it goes
on after the last of them.
"""

import argparse
import json
import resource
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from pruning.events import Event, IncrementFinished, Phase, PhaseChanged
from pruning.recipe import Recipe

REPORTS = "reports.jsonl"
_PRUNING_PHASES: tuple[Phase, ...] = ("calibrating", "pruning")
_TRAINING_STATE = "training_state"


@dataclass(frozen=True, kw_only=True)
class Report:
    """A published size: processor seconds spent on calibrating and cutting until then, and the
    largest process that did it."""

    directory: str
    num_parameters: int
    cpu_seconds: float
    peak_bytes: int
    final: bool


def read_reports(path: Path) -> list[Report]:
    """What a run has reported so far."""
    if not path.exists():
        return []
    return [Report(**json.loads(line)) for line in path.read_text().splitlines()]


class Meter:
    """Reports on each published size, counting on from the last report."""

    def __init__(self, out_dir: Path, last: Report | None) -> None:
        self.out_dir, self.last = out_dir, last
        self.cpu_seconds = last.cpu_seconds if last else 0.0
        self.phase: Phase = "loading"
        self.entered_at = time.process_time()

    def __call__(self, event: Event) -> None:
        if isinstance(event, PhaseChanged):
            self._enter(event.phase)
        elif isinstance(event, IncrementFinished):
            self._report(event)

    def _enter(self, phase: Phase) -> None:
        now = time.process_time()
        if self.phase in _PRUNING_PHASES:
            self.cpu_seconds += now - self.entered_at
        self.phase, self.entered_at = phase, now

    def _report(self, event: IncrementFinished) -> None:
        peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        report = Report(
            directory=str(self.out_dir / event.directory),
            num_parameters=event.num_parameters,
            cpu_seconds=self.cpu_seconds,
            peak_bytes=max(peak_bytes, self.last.peak_bytes if self.last else 0),
            final=event.final,
        )
        with (self.out_dir / REPORTS).open("a") as reports:
            reports.write(json.dumps(asdict(report)) + "\n")
        # What a run would go on from is the larger part of a checkpoint: the newest alone has it.
        for done in (self.last, report if report.final else None):
            if done is not None:
                shutil.rmtree(Path(done.directory) / _TRAINING_STATE, ignore_errors=True)
        self.last = report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    recipe = Recipe.model_validate_json(args.recipe.read_bytes())
    reports = read_reports(args.out / REPORTS)
    last = reports[-1] if reports else None
    if last is not None and last.final:
        return
    from pruning.pipeline import run

    run(
        recipe,
        args.out,
        Meter(args.out, last),
        resume_from=None if last is None else Path(last.directory),
        device="cpu",
        threads=args.threads,
    )


if __name__ == "__main__":
    main()
