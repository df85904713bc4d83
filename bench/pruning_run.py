"""One run of the library without training, its processor time and memory measured apart.

    python -m bench.pruning_run RECIPE.json OUT_DIR

Prints one JSON line per published size: what the cuts to it took in a process of their own.
"""

import argparse
import json
import resource
import shutil
import sys
import time
from pathlib import Path

from pruning.events import Event, IncrementFinished, Phase, PhaseChanged
from pruning.recipe import Recipe

_PRUNING_PHASES: tuple[Phase, ...] = ("calibrating", "pruning")


class Meter:
    """Processor seconds spent on calibrating and cutting, reported at each published size."""

    def __init__(self, out_dir: Path) -> None:
        self.out_dir = out_dir
        self.cpu_seconds = 0.0
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
        directory = self.out_dir / event.directory
        # What a run would resume from is the larger part of a checkpoint.
        shutil.rmtree(directory / "training_state")
        line = {
            "directory": str(directory),
            "increment": event.increment,
            "num_parameters": event.num_parameters,
            "cpu_seconds": self.cpu_seconds,
            "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    recipe = Recipe.model_validate_json(args.recipe.read_bytes())
    from pruning.pipeline import run

    meter = Meter(args.out)
    run(recipe, args.out, meter, device="cpu", threads=args.threads)


if __name__ == "__main__":
    main()
