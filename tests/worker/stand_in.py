"""A child without a model: speaks the whole protocol, in milliseconds, and misbehaves on request.

What it shall do is written, as JSON, in the first inline document of the recipe. What it stores is
random, so that work done twice cannot look like work done once; every manifest names its parent, so
that the tests can follow the line.
"""

import argparse
import json
import os
import secrets
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from pruning import parked
from pruning.events import (
    EvaluationFinished,
    Event,
    IncrementFinished,
    LayerWidths,
    MixtureChanged,
    Outcome,
    PhaseChanged,
    PruneFinished,
    RunFailed,
    RunFinished,
    RunStarted,
    RunStopped,
    StepFinished,
    dump_event,
)
from pruning.manifest import (
    MANIFEST_NAME,
    Lineage,
    Manifest,
    Measurement,
    digest_file,
    read_manifest,
    write_manifest,
)
from pruning.plan import PruningPlan
from pruning.recipe import Recipe
from pruning.recipe_parts.data import InlineData

BASE = 1000
TOKENS_PER_STEP = 10
STEPS = 4
WIDTHS = (LayerWidths(intermediate_size=8, num_attention_heads=2, num_key_value_heads=1),)


class Run:
    def __init__(self, arguments: argparse.Namespace) -> None:
        self.recipe = Recipe.model_validate_json(arguments.recipe.read_bytes())
        source = self.recipe.data.train[0].source
        assert isinstance(source, InlineData)
        self.orders: dict[str, Any] = json.loads(source.documents[0])
        self.count = self.recipe.schedule.num_increments or 3
        self.out: Path = arguments.out
        self.events = os.fdopen(arguments.events_fd, "w", buffering=1)
        self.parent = read_manifest(arguments.resume) if arguments.resume else None
        self.parent_sha256 = (
            digest_file(arguments.resume / MANIFEST_NAME).sha256 if arguments.resume else None
        )
        self.asked_to_stop = False
        signal.signal(signal.SIGTERM, self._stop)

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self.asked_to_stop = True

    def emit(self, event: Event) -> None:
        self.events.write(dump_event(event) + "\n")

    def go(self) -> int:
        done = self.parent.increment if self.parent else 0
        self.emit(self._started(done + 1))
        for increment in range(done + 1, self.count + 1):
            if increment == self.orders.get("floor_at"):
                self._finished("quality_floor", increment - 1)
                return 0
            code = self._increment(increment)
            if code is not None:
                return code
            if self.asked_to_stop and increment < self.count:
                self.emit(RunStopped(increment=increment))
                return 0
        self._finished("target_reached", self.count)
        return 0

    def _finished(self, outcome: Outcome, increment: int) -> None:
        parameters = self._parameters(increment)
        self.emit(RunFinished(outcome=outcome, num_parameters=parameters, increment=increment))

    def _started(self, first: int) -> RunStarted:
        return RunStarted(
            num_parameters=BASE,
            num_prunable_parameters=BASE,
            target_num_parameters=self._parameters(self.count),
            num_increments=self.count,
            num_tokens=self.count * STEPS * TOKENS_PER_STEP,
            num_calibration_samples=1,
            calibration_sequence_length=8,
            first_increment=first,
            model_revision=None,
            model_type="stand_in",
            data_fingerprint="sha256:0",
            widths=WIDTHS,
            versions={"stand_in": "1"},
            device="cpu",
        )

    def _increment(self, increment: int) -> int | None:
        tokens = (increment - 1) * STEPS * TOKENS_PER_STEP
        self.emit(PhaseChanged(phase="pruning", increment=increment))
        self.emit(
            PruneFinished(
                increment=increment,
                num_tokens=tokens,
                num_parameters_before=self._parameters(increment - 1),
                num_parameters=self._parameters(increment),
                widths=WIDTHS,
            )
        )
        self.emit(PhaseChanged(phase="training", increment=increment))
        if weights := self.orders.get("weights"):
            self.emit(
                MixtureChanged(
                    increment=increment, step=0, num_tokens=tokens, weights=weights, losses={}
                )
            )
        for number in range(STEPS):
            time.sleep(self.orders.get("step_seconds", 0.0))
            self._step((increment - 1) * STEPS + number + 1, increment)
            if number == STEPS // 2:
                self._keep(increment)
                code = self._misbehave(increment)
                if code is not None:
                    return code
        perplexity = 10.0 + secrets.randbelow(1000) / 1000
        self.emit(
            EvaluationFinished(
                increment=increment,
                stage="recovered",
                num_tokens=tokens + STEPS * TOKENS_PER_STEP,
                suite="perplexity",
                metric="perplexity",
                value=perplexity,
                protocol={"context_length": 8},
            )
        )
        self.emit(self._write(increment, perplexity))
        return None

    def _step(self, step: int, increment: int) -> None:
        self.emit(
            StepFinished(
                increment=increment,
                step=step,
                num_tokens=step * TOKENS_PER_STEP,
                loss=float(self.orders.get("loss", 4.0 - step / 100)),
                learning_rate=1e-4,
                grad_norm=1.0,
                tokens_per_second=100.0,
            )
        )

    def _keep(self, increment: int) -> None:
        """Keep the increment in progress as ordered, or say that it was there already."""
        order = self.orders.get("keep")
        if order is None or order["increment"] != increment:
            return
        partial = self.out / f"partial-{increment:04d}"
        if partial.exists():
            Path(order["found"]).touch()
            return
        parent_sha256 = self.parent_sha256
        self._write(increment, 10.0)
        self.parent_sha256 = parent_sha256
        (self.out / f"increment-{increment:04d}").rename(partial)

    def _misbehave(self, increment: int) -> int | None:
        order = self.orders.get("misbehave")
        if order is None or order["increment"] != increment:
            return None
        marker = Path(order["once"]) if "once" in order else None
        if marker is not None and marker.exists():
            return None
        if marker is not None:
            marker.touch()
        match order["how"]:
            case "signal":
                os.kill(os.getpid(), order["signal"])
            case "hang":
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                time.sleep(600)
            case "exit":
                sys.stderr.write("about to leave\n")
                return int(order["code"])
            case "fail":
                self.emit(
                    RunFailed(
                        code=order["name"], message="as ordered", retryable=order["code"] == 75
                    )
                )
                return int(order["code"])
        return None

    def _write(self, increment: int, perplexity: float) -> IncrementFinished:
        name = f"increment-{increment:04d}"
        directory = self.out / name
        (directory / "training_state").mkdir(parents=True)
        (directory / "config.json").write_text('{"model_type": "stand_in"}')
        (directory / "model.safetensors").write_bytes(secrets.token_bytes(1000))
        (directory / "training_state" / "state.json").write_text(secrets.token_hex(8))
        files = {
            str(path.relative_to(directory)): digest_file(path)
            for path in directory.rglob("*")
            if path.is_file()
        }
        manifest = Manifest(
            increment=increment,
            step=increment * STEPS,
            num_tokens=increment * STEPS * TOKENS_PER_STEP,
            num_parameters=self._parameters(increment),
            base_num_parameters=BASE,
            target_num_parameters=self._parameters(self.count),
            num_bytes=1000,
            dtype="bfloat16",
            final=increment == self.count,
            outcome="target_reached" if increment == self.count else None,
            widths=WIDTHS,
            measurements=(
                Measurement(
                    stage="recovered",
                    increment=increment,
                    suite="perplexity",
                    metric="perplexity",
                    value=perplexity,
                    protocol={"context_length": 8},
                ),
            ),
            lineage=Lineage(
                model="inline", model_revision=None, parent_manifest_sha256=self.parent_sha256
            ),
            data_fingerprint="sha256:0",
            recipe=self.recipe,
            plan=PruningPlan.keep_all(num_layers=1, intermediate_size=8, num_kv_groups=1),
            versions={"stand_in": "1"},
            created_at=datetime.now(UTC),
            files=files,
        )
        self.parent_sha256 = write_manifest(manifest, directory)
        return IncrementFinished(
            increment=increment,
            step=manifest.step,
            num_tokens=manifest.num_tokens,
            num_parameters=manifest.num_parameters,
            directory=name,
            manifest_sha256=self.parent_sha256,
            final=manifest.final,
            outcome=manifest.outcome,
        )

    def _parameters(self, increment: int) -> int:
        return BASE - 100 * increment


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("wait")
    run = commands.add_parser("run")
    run.add_argument("recipe", type=Path)
    run.add_argument("--out", type=Path, required=True)
    run.add_argument("--resume", type=Path)
    run.add_argument("--events-fd", type=int, required=True)
    run.add_argument("--device", default="auto")
    parsed = parser.parse_args(arguments)
    if parsed.command == "wait":
        order = parked.wait_for_order()
        return 0 if order is None else main(["run", *order])
    return Run(parsed).go()


if __name__ == "__main__":
    sys.exit(main())
