"""What the service adds to a run and what a kill costs it: `espalier up` with a tiny real model."""

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import select

from bench.figures import Figure, percentile
from registry.db import create_engine, reading, session_factory
from registry.settings import Settings
from registry.tables import MetricPoint
from tests.e2e.stack import IMPATIENT, Up, tiny_request, wait_until, write_model_and_text
from worker.child import offline_environment

FIRST_EVENT_SECONDS = 1.0
OVERHEAD = 0.03
SUBMISSIONS = 20
PAIRS = 3
KILLS = 6
CHECKPOINT_SECONDS = 3.0
SHORT_TOKENS, LONG_TOKENS, ENDLESS_TOKENS = 120_000, 600_000, 5_000_000
_SEED = 7


@contextmanager
def _running_up(num_tokens: int) -> Iterator[tuple[Up, dict[str, Any]]]:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        request = tiny_request(*write_model_and_text(directory / "inputs"), num_tokens=num_tokens)
        up = Up(directory / "data", directory)
        try:
            yield up, request
            up.interrupt()
        finally:
            up.close()


def _wait_for_parked(up: Up) -> None:
    """Until a child waits that has imported everything: its processor time stands still."""

    def is_waiting() -> bool:
        try:
            waiting = [p for p in up.tree() if p.cmdline()[-1:] == ["wait"]]
            before = [sum(p.cpu_times()[:2]) for p in waiting]
            time.sleep(0.5)
            return before == [sum(p.cpu_times()[:2]) for p in waiting] and min(before) > 1.0
        except (psutil.NoSuchProcess, ValueError):
            return False  # One ended just now, or none waits.

    wait_until(is_waiting, seconds=120, what="a child that waits")


def _wait_for_end(up: Up, job_id: str) -> None:
    wait_until(lambda: up.client.get(job_id).ended, seconds=300, what="the end", look_seconds=0.5)


# --- first event ----------------------------------------------------------------------------------


def measure_first_event() -> tuple[list[Figure], dict[str, Any]]:
    """From sending the request to the creation of the running child's first event."""
    seconds = []
    with _running_up(SHORT_TOKENS) as (up, request):
        for _ in range(SUBMISSIONS):
            _wait_for_parked(up)
            sent = datetime.now(UTC)
            job = up.client.submit(request)
            seconds.append((_first_event(up, job.id) - sent).total_seconds())
            up.client.cancel(job.id)
            _wait_for_end(up, job.id)
    figure = Figure(
        what=f"submit to the child's first event, 95th percentile of {SUBMISSIONS}",
        bar=FIRST_EVENT_SECONDS,
        figure=percentile(seconds, 0.95),
        unit="s",
    )
    return [figure], {"seconds": seconds, "median": statistics.median(seconds)}


def _first_event(up: Up, job_id: str) -> datetime:
    """When the first event of the child was written down; those before it are the service's."""
    while True:
        for event in up.client.events(job_id).data:
            if event.type == "phase.changed":
                return event.created_at
        time.sleep(0.05)


# --- overhead -------------------------------------------------------------------------------------


def measure_overhead() -> tuple[list[Figure], dict[str, Any]]:
    """The same recipe both ways, in turns: from request, or start, to end; and without the start.

    Without the start: from the child's first event to its last, since one waits in the service that
    has imported everything.
    """
    pairs = []
    with _running_up(LONG_TOKENS) as (up, request):
        for _ in range(PAIRS):
            _wait_for_parked(up)
            through = _through_service(up, request)
            _wait_for_parked(up)
            pairs.append({"service": through, "command": _alone(request)})
    figures = [
        Figure(
            what=f"service overhead{name}, median of {PAIRS} pairs",
            bar=OVERHEAD,
            figure=statistics.median(p["service"][kind] / p["command"][kind] - 1 for p in pairs),
            unit="",
        )
        for kind, name in (("seconds", ""), ("without_start", ", without the start"))
    ]
    return figures, {"pairs": pairs}


def _through_service(up: Up, request: dict[str, Any]) -> dict[str, float]:
    sent = datetime.now(UTC)
    job_id = up.client.submit(request).id
    _wait_for_end(up, job_id)
    job = up.client.get(job_id)
    assert job.status == "succeeded", job
    assert job.finished_at is not None
    return {
        "seconds": (job.finished_at - sent).total_seconds(),
        "without_start": (job.finished_at - _first_event(up, job_id)).total_seconds(),
    }


def _alone(request: dict[str, Any]) -> dict[str, float]:
    """`python -m pruning run` in the environment of a child of the service."""
    read_fd, write_fd = os.pipe()
    with tempfile.TemporaryDirectory() as directory:
        recipe = Path(directory) / "recipe.json"
        recipe.write_text(json.dumps(request))
        command = [sys.executable, "-m", "pruning", "run", str(recipe), "--out", f"{directory}/out"]
        started = time.perf_counter()
        process = subprocess.Popen(
            [*command, "--events-fd", str(write_fd)],
            env=offline_environment({**os.environ, **IMPATIENT}),
            pass_fds=(write_fd,),
        )
        os.close(write_fd)
        with os.fdopen(read_fd) as lines:
            moments = [datetime.fromisoformat(json.loads(line)["at"]) for line in lines]
        assert process.wait() == 0
        seconds = time.perf_counter() - started
    return {"seconds": seconds, "without_start": (moments[-1] - moments[0]).total_seconds()}


# --- lost work ------------------------------------------------------------------------------------


def measure_lost_work() -> tuple[list[Figure], dict[str, Any]]:
    """Steps that are trained again after their child was killed, in seconds of training."""
    dice = random.Random(_SEED)
    with _running_up(ENDLESS_TOKENS) as (up, request):
        request |= {"limits": {"max_attempts": 4 * KILLS}}
        request["recovery"] |= {"checkpoint_seconds": CHECKPOINT_SECONDS}
        job_id = up.client.submit(request).id
        for attempt in range(1, KILLS + 1):
            child = _training_child(up, job_id, attempt)
            time.sleep(dice.uniform(1.0, 2.5) * CHECKPOINT_SECONDS)
            child.kill()
        _training_child(up, job_id, KILLS + 1)
        lost = _lost_seconds(up.data_dir, job_id)
        up.client.cancel(job_id)
        _wait_for_end(up, job_id)
    figure = Figure(
        what=f"training lost by a kill, max of {KILLS}, in checkpoint intervals",
        bar=1.0,
        figure=max(lost) / CHECKPOINT_SECONDS,
        unit="intervals",
    )
    return [figure], {"checkpoint_seconds": CHECKPOINT_SECONDS, "lost_seconds": lost}


def _training_child(up: Up, job_id: str, attempt: int) -> psutil.Process:
    """The child of this attempt, once it has reported steps."""

    def has_trained() -> bool:
        return len(_steps(up.data_dir, job_id)) >= attempt

    wait_until(has_trained, seconds=120, what=f"attempt {attempt} to train", look_seconds=0.2)
    logged = f"attempt-{max(_steps(up.data_dir, job_id)):06d}.log"
    for process in up.find("celery").children():
        if Path(f"/proc/{process.pid}/fd/1").readlink().name == logged:
            return process
    raise AssertionError(f"no child prints to {logged}")


def _steps(data_dir: Path, job_id: str) -> dict[int, dict[int, float]]:
    """By fence: how many seconds each step took that was run under it."""
    engine = create_engine(Settings(data_dir=data_dir))
    with reading(session_factory(engine)) as session:
        query = select(MetricPoint).where(MetricPoint.job_id == job_id).order_by(MetricPoint.fence)
        batches = session.scalars(query).all()
    engine.dispose()
    taken: dict[int, dict[int, float]] = {}
    for batch in batches:
        columns = (batch.columns[key] for key in ("step", "num_tokens", "tokens_per_second"))
        for step, num_tokens, rate in zip(*columns, strict=True):
            taken.setdefault(batch.fence, {})[step] = num_tokens / step / rate
    return taken


def _lost_seconds(data_dir: Path, job_id: str) -> list[float]:
    by_fence = _steps(data_dir, job_id)
    return [
        sum(seconds for step, seconds in before.items() if step >= min(after))
        for before, after in pairwise(by_fence[fence] for fence in sorted(by_fence))
    ]
