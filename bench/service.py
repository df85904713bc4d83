"""What the service itself costs, against its bars: `python -m bench.service`.

Parts: `sweep` (10,000 active jobs on both databases), `up` (a cold `espalier up` until it is ready,
and the API's memory), `first_event` (from submitting to the first event of the running child, which
was waiting), `overhead` (one recipe through the service and through `python -m pruning run`, in
turns), `recovery` (from the death of a worker to the next increment, and from SIGTERM to its exit),
`lost_work` (what is trained again after a kill). Each part's result goes into
bench/results/service.json; parts that were not run keep theirs.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import insert, inspect

from bench.figures import Figure, percentile
from bench.service_recovery import measure_recovery
from bench.service_runs import measure_first_event, measure_lost_work, measure_overhead
from registry import api_keys
from registry.db import SessionFactory, create_engine, session_factory, transaction
from registry.ids import new_id
from registry.migrate import migrate
from registry.queue import celery_app
from registry.settings import Settings
from registry.status import JobStatus
from registry.sweeping import sweep_round
from registry.tables import Job
from tests.e2e.stack import Up
from tests.factories import make_job
from tests.servers import postgres_server

RESULTS = Path(__file__).parent / "results" / "service.json"
SWEEP_SECONDS, UP_SECONDS = 0.05, 5.0
API_BYTES = 150 * 10**6
NUM_JOBS = 10_000
ROUNDS = 200
STARTS = 3


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
        Figure(
            what=f"up to ready, median of {STARTS}",
            bar=UP_SECONDS,
            figure=statistics.median(seconds),
            unit="s",
        ),
        Figure(
            what="API process, resident, after 200 requests",
            bar=API_BYTES / 1e6,
            figure=max(resident) / 1e6,
            unit="MB",
        ),
    ]
    return figures, {"up_seconds": seconds, "api_bytes": resident}


PARTS: dict[str, Callable[[], tuple[list[Figure], dict[str, Any]]]] = {
    "sweep": measure_sweep,
    "up": measure_up,
    "first_event": measure_first_event,
    "overhead": measure_overhead,
    "recovery": measure_recovery,
    "lost_work": measure_lost_work,
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
            "figures": [figure.as_json() for figure in figures],
            **details,
        }
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
