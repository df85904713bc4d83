"""What the service itself costs, against its bars: `python -m bench.service`.

Parts: `sweep` (10,000 active jobs on both databases), `up` (a cold `espalier up` until it is ready,
and the API's memory), `first_event` (from submitting to the first event of the running child, which
was waiting), `overhead` (one recipe through the service and through `python -m pruning run`, in
turns). Each part's result goes into bench/results/service.json; parts that were not run keep
theirs.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import insert, inspect

from registry import api_keys
from registry.__main__ import sweep_round
from registry.db import SessionFactory, create_engine, session_factory, transaction
from registry.ids import new_id
from registry.migrate import migrate
from registry.queue import celery_app
from registry.settings import Settings
from registry.status import JobStatus
from registry.tables import Job
from tests.e2e.stack import IMPATIENT, Up, tiny_request, wait_until, write_model_and_text
from tests.factories import make_job
from tests.servers import postgres_server

RESULTS = Path(__file__).parent / "results" / "service.json"
SWEEP_SECONDS, UP_SECONDS, FIRST_EVENT_SECONDS = 0.05, 5.0, 1.0
API_BYTES = 150 * 10**6
OVERHEAD = 0.03
NUM_JOBS = 10_000
ROUNDS = 200
STARTS = 3
SUBMISSIONS = 20
PAIRS = 3


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A measured number beside its bar, both in the same unit; smaller is better."""

    what: str
    bar: float
    figure: float
    unit: str

    @property
    def met(self) -> bool:
        return self.figure <= self.bar

    def line(self) -> str:
        verdict = "met" if self.met else "MISSED"
        return f"{self.what:58} {self.bar:9.3f} {self.figure:9.3f} {self.unit:3} {verdict}"


def percentile(values: list[float], share: float) -> float:
    """The smallest value that at least this share of all do not exceed."""
    return sorted(values)[math.ceil(share * len(values)) - 1]


# --- sweep ----------------------------------------------------------------------------------------


def measure_sweep() -> tuple[list[Figure], dict[str, Any]]:
    """Rounds of the sweeper, each with its commits, while nothing and while everything is due."""
    figures, details = [], {}
    for kind in ("sqlite", "postgres"):
        with _database(kind) as (settings, factory):
            _fill(factory)
            seconds = _rounds(factory, settings)
        figures.append(
            Figure(
                what=f"sweep, {NUM_JOBS} active jobs, {kind}, 95th percentile",
                bar=SWEEP_SECONDS,
                figure=percentile(seconds, 0.95),
                unit="s",
            )
        )
        details[kind] = {
            "median": statistics.median(seconds),
            "p95": percentile(seconds, 0.95),
            "max": max(seconds),
        }
    return figures, details


@contextmanager
def _database(kind: str) -> Iterator[tuple[Settings, SessionFactory]]:
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        url = stack.enter_context(postgres_server()) if kind == "postgres" else ""
        settings = Settings(data_dir=Path(directory), database_url=url)
        migrate(settings)
        engine = create_engine(settings)
        stack.callback(engine.dispose)
        yield settings, session_factory(engine)


def _fill(factory: SessionFactory) -> None:
    """Half of the jobs wait, a tenth of these for later; workers hold the others."""
    with transaction(factory) as session:
        tenant = api_keys.get_or_create_tenant(session)
        job = make_job(session, tenant.id, max_runtime_seconds=86_400.0)
        row = {c.key: getattr(job, c.key) for c in inspect(Job).column_attrs}
        session.execute(insert(Job), [_another(row, number) for number in range(1, NUM_JOBS)])


def _another(row: dict[str, Any], number: int) -> dict[str, Any]:
    at = row["queued_at"] + timedelta(milliseconds=number)
    changes: dict[str, Any] = {"id": new_id("job"), "queued_at": at, "priority": number % 7}
    if number % 2:
        held = {"lease_owner": f"w{number}", "lease_until": at + timedelta(hours=1), "fence": 1}
        changes |= {"status": JobStatus.RUNNING, **held}
    elif number % 20 == 0:
        changes["not_before"] = at + timedelta(hours=1)
    return {**row, **changes}


def _rounds(factory: SessionFactory, settings: Settings) -> list[float]:
    queue = celery_app(settings)
    seconds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        sweep_round(factory, settings, queue)
        seconds.append(time.perf_counter() - started)
        time.sleep(0.02)
    return seconds


# --- up -------------------------------------------------------------------------------------------


def measure_up() -> tuple[list[Figure], dict[str, Any]]:
    """The first start in an empty directory, again and again, and the API after 200 requests."""
    seconds, resident = [], []
    for _ in range(STARTS):
        with tempfile.TemporaryDirectory() as directory:
            started = time.perf_counter()
            up = Up(Path(directory) / "data", Path(directory))
            seconds.append(time.perf_counter() - started)
            try:
                for _ in range(200):
                    up.client.list_jobs()
                resident.append(up.find("uvicorn").memory_info().rss)
            finally:
                up.interrupt()
                up.close()
    figures = [
        Figure(what="up to ready, median", bar=UP_SECONDS, figure=_median(seconds), unit="s"),
        Figure(
            what="API process, resident, after 200 requests",
            bar=API_BYTES / 1e6,
            figure=max(resident) / 1e6,
            unit="MB",
        ),
    ]
    return figures, {"up_seconds": seconds, "api_bytes": resident}


# --- first event ----------------------------------------------------------------------------------


def measure_first_event() -> tuple[list[Figure], dict[str, Any]]:
    """From sending the request to the creation of the running child's first event."""
    seconds = []
    with _running_up() as (up, request):
        for _ in range(SUBMISSIONS):
            _wait_for_parked(up)
            sent = datetime.now(UTC)
            job = up.client.submit(request)
            seconds.append((_first_event(up, job.id) - sent).total_seconds())
            up.client.cancel(job.id)
            wait_until(lambda job=job: up.client.get(job.id).ended, seconds=60, what="the end")  # type: ignore[misc]
    figure = Figure(
        what=f"submit to the child's first event, 95th percentile of {SUBMISSIONS}",
        bar=FIRST_EVENT_SECONDS,
        figure=percentile(seconds, 0.95),
        unit="s",
    )
    return [figure], {"seconds": seconds, "median": _median(seconds)}


@contextmanager
def _running_up(**settings: str) -> Iterator[tuple[Up, dict[str, Any]]]:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        request = tiny_request(*write_model_and_text(directory / "inputs"), num_tokens=120_000)
        IMPATIENT.update(settings)
        up = Up(directory / "data", directory)
        try:
            yield up, request
            up.interrupt()
        finally:
            up.close()


def _wait_for_parked(up: Up) -> None:
    def is_waiting() -> bool:
        waiting = [p for p in up.tree() if p.cmdline()[-1:] == ["wait"]]
        if not waiting:
            return False
        before = sum(waiting[0].cpu_times()[:2])
        time.sleep(0.5)
        return before > 1.0 and sum(waiting[0].cpu_times()[:2]) == before

    wait_until(is_waiting, seconds=120, what="a child that waits")


def _first_event(up: Up, job_id: str) -> datetime:
    """When the first event of the child was written down; those before it are the service's."""
    while True:
        for event in up.client.events(job_id).data:
            if event.type == "phase.changed":
                return event.created_at
        time.sleep(0.02)


# --- overhead -------------------------------------------------------------------------------------


def measure_overhead() -> tuple[list[Figure], dict[str, Any]]:
    """The same recipe both ways, in turns: from the request, or the start, to the end."""
    pairs = []
    with _running_up() as (up, request):
        for _ in range(PAIRS):
            _wait_for_parked(up)
            through = _seconds(lambda: _through_service(up, request))
            _wait_for_parked(up)
            alone = _seconds(lambda: _alone(request))
            pairs.append({"service": through, "command": alone})
    shares = [pair["service"] / pair["command"] - 1 for pair in pairs]
    figure = Figure(
        what=f"service overhead, median of {PAIRS} pairs",
        bar=OVERHEAD,
        figure=_median(shares),
        unit="",
    )
    return [figure], {"pairs": pairs}


def _through_service(up: Up, request: dict[str, Any]) -> None:
    job = up.client.submit(request)
    wait_until(lambda: up.client.get(job.id).ended, seconds=300, what="the job to end")
    assert up.client.get(job.id).status == "succeeded"


def _alone(request: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        recipe = Path(directory) / "recipe.json"
        recipe.write_text(json.dumps(request))
        command = [sys.executable, "-m", "pruning", "run", recipe, "--out", f"{directory}/out"]
        subprocess.run(command, check=True, capture_output=True)


def _seconds(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _median(values: list[float]) -> float:
    return statistics.median(values)


PARTS: dict[str, Callable[[], tuple[list[Figure], dict[str, Any]]]] = {
    "sweep": measure_sweep,
    "up": measure_up,
    "first_event": measure_first_event,
    "overhead": measure_overhead,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=PARTS, nargs="+", default=list(PARTS))
    chosen = parser.parse_args().only
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    missed = False
    for part in chosen:
        figures, details = PARTS[part]()
        for figure in figures:
            print(figure.line(), flush=True)
            missed = missed or not figure.met
        results[part] = {
            "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "processors": psutil.cpu_count(),
            "load_average": psutil.getloadavg(),
            "figures": [{**asdict(figure), "met": figure.met} for figure in figures],
            **details,
        }
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
