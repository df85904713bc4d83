"""`python -m bench.chaos --minutes 10 --database postgres`: random faults over real processes.

Jobs of stand-in children (their files are random, so that work done twice cannot look like work
done once) run on real workers and sweepers while `bench.chaos_faults` strikes at those that run.
Afterwards every job must have succeeded, its history must hold, and every stored byte must be what
it was. Prints JSON; exits with 1 on a violation.
"""

import argparse
import json
import random
import shutil
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import func, select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from bench.chaos_faults import WORKERS, Chaos
from registry import api_keys, fsck, garbage
from registry.db import SessionFactory, create_engine, reading, session_factory, transaction
from registry.migrate import migrate
from registry.settings import Settings
from registry.status import JobStatus
from registry.storage import store_for
from registry.tables import Increment, Job, JobAttempt
from tests.servers import free_port, postgres_that_restarts, redis_server
from tests.worker.blackhole import proxied
from tests.worker.conftest import STAND_IN, submit_stand_in
from tests.worker.history import check_history
from tests.worker.processes import Processes

INCREMENTS = 20
STEP_SECONDS = 0.05
LEASE_SECONDS = 3.0
STALL_SECONDS = 10.0
PAUSE_SECONDS = (0.3, 1.7)
"""Between two faults, by chance."""
_IDLE_SECONDS = 120.0
_PATIENCE_SECONDS = 240.0


@contextmanager
def service(
    database: str, directory: Path
) -> Iterator[tuple[Settings, dict[str, Callable[[], None]]]]:
    """Settings of an empty service, and the faults that its servers can have."""
    fields: dict[str, Any] = {
        "data_dir": directory / "data",
        "child_command": STAND_IN,
        "lease_seconds": LEASE_SECONDS,
        "stall_seconds": STALL_SECONDS,
        "rehint_seconds": 1.0,
        "backoff_seconds": 0.0,
        "slice_seconds": 20.0,
        "collect_seconds": 1.0,
        "storage_reserve_bytes": 0,
        "database_answer_seconds": 2.0,
    }
    if database == "sqlite":
        settings = Settings(**fields)
        yield settings, _file_faults(settings)
        return
    with _servers() as (urls, faults):
        yield Settings(**(fields | urls)), faults


@contextmanager
def _servers() -> Iterator[tuple[dict[str, str], dict[str, Callable[[], None]]]]:
    """Postgres behind a proxy, and a broker: where they are, and what can go wrong with them."""
    port = free_port()
    with (
        postgres_that_restarts() as (direct, restart_database),
        proxied(direct) as (url, proxy),
        ExitStack() as broker,
    ):
        broker.enter_context(redis_server(port))

        def restart_broker() -> None:
            broker.close()
            broker.enter_context(redis_server(port))

        def silence() -> None:
            proxy.dark = True
            time.sleep(LEASE_SECONDS + 1)
            proxy.dark = False

        faults = {
            "database loses power": restart_database,
            "database silent for longer than a lease": silence,
            "broker forgets": restart_broker,
        }
        yield {"database_url": url, "broker_url": f"redis://127.0.0.1:{port}/0"}, faults


def _file_faults(settings: Settings) -> dict[str, Callable[[], None]]:
    """What can go wrong with a database and a broker that are files."""

    def lock() -> None:
        path = make_url(settings.database_url).database
        with closing(sqlite3.connect(str(path), timeout=60, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            time.sleep(LEASE_SECONDS + 1)
            connection.execute("ROLLBACK")

    def forget() -> None:
        for message in (settings.data_dir / "broker" / "messages").iterdir():
            message.unlink(missing_ok=True)

    return {"database locked for longer than a lease": lock, "broker forgets": forget}


def rage(chaos: Chaos, factory: SessionFactory, arguments: argparse.Namespace) -> None:
    """Keep jobs under way and strike until there was enough of all."""
    until = time.monotonic() + 60 * arguments.minutes
    struck_at = time.monotonic()
    while (
        time.monotonic() < until
        or len(chaos.strikes) < arguments.faults
        or _count_increments(factory) < arguments.increments
    ):
        with suppress(DBAPIError):
            while _count_open(factory) < 2 * WORKERS:
                _submit(factory)
        time.sleep(random.uniform(*PAUSE_SECONDS))
        if chaos.strike():
            struck_at = time.monotonic()
        elif time.monotonic() - struck_at > _IDLE_SECONDS:
            chaos.died.append(f"nothing ran for {_IDLE_SECONDS:g} s")
            return


def heal(chaos: Chaos, factory: SessionFactory) -> None:
    """Strike no more, and wait for the end of all jobs."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not _all_ended(factory) and time.monotonic() < deadline:
        chaos.tend()
        time.sleep(0.5)


def _submit(factory: SessionFactory) -> None:
    with transaction(factory) as session:
        tenant_id = api_keys.get_or_create_tenant(session).id
    submit_stand_in(factory, tenant_id, INCREMENTS, 100, {"step_seconds": STEP_SECONDS})


def _count_open(factory: SessionFactory) -> int:
    with reading(factory) as session:
        query = select(func.count()).select_from(Job).where(Job.finished_at.is_(None))
        return session.execute(query).scalar_one()


def _count_increments(factory: SessionFactory) -> int:
    """Committed ones; 0 while the database is away, so that it goes on."""
    with suppress(DBAPIError), reading(factory) as session:
        return session.execute(select(func.count()).select_from(Increment)).scalar_one()
    return 0


def _all_ended(factory: SessionFactory) -> bool:
    with suppress(DBAPIError):
        return _count_open(factory) == 0
    return False


def check(factory: SessionFactory, settings: Settings) -> list[str]:
    """Every promise that was not kept."""
    store = store_for(settings.artifacts_url)
    with reading(factory) as session:
        jobs = session.scalars(select(Job)).all()
    violations = [f"{j.id} is {j.status}" for j in jobs if j.status is not JobStatus.SUCCEEDED]
    for job in jobs:
        try:
            check_history(factory, store, job.id)
        except AssertionError as error:
            violations.append(f"{job.id}: {error}")
    garbage.collect(factory, store)
    report = fsck.check(factory, store)
    if not report.is_sound:
        violations.append(f"store: {report}")
    return violations


def tell(chaos: Chaos, factory: SessionFactory) -> dict[str, Any]:
    """How often each fault struck, with how much running, and what became of its victims."""
    with reading(factory) as session:
        attempts = session.scalars(select(JobAttempt)).all()
        num_jobs = session.execute(select(func.count()).select_from(Job)).scalar_one()
    causes = {(attempt.job_id, attempt.fence): attempt.end_cause for attempt in attempts}
    faults: dict[str, dict[str, int]] = {}
    for strike in chaos.strikes:
        row = faults.setdefault(strike.fault, Counter(struck=0, running_attempts=0))
        row["struck"] += 1
        row["running_attempts"] += strike.num_running
        ends = chaos.faults[strike.fault].ends
        if ends is not None:
            row.setdefault("ended_its_attempt", 0)
            cause = causes.get((strike.target.job_id, strike.target.fence))
            row["ended_its_attempt"] += cause == ends
    return {
        "jobs": num_jobs,
        "increments": _count_increments(factory),
        "num_faults": len(chaos.strikes),
        "num_aimed_faults": sum("ended_its_attempt" in faults[s.fault] for s in chaos.strikes),
        "num_attempts_ended_by_faults": sum(
            row.get("ended_its_attempt", 0) for row in faults.values()
        ),
        "faults": {name: dict(row) for name, row in sorted(faults.items())},
        # No child errs of itself: whatever ends an attempt so is a fault of the service.
        "errors": dict(Counter(_error_of(a) for a in attempts if a.end_cause == "error")),
        "attempts": dict(Counter(str(cause) for cause in causes.values()).most_common()),
    }


def _error_of(attempt: JobAttempt) -> str:
    return f"attempt {attempt.end_cause}: {attempt.message}: {(attempt.log_tail or '')[-500:]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="at least so long")
    parser.add_argument("--faults", type=int, default=0, help="at least so many")
    parser.add_argument("--increments", type=int, default=0, help="at least so many under faults")
    parser.add_argument("--database", choices=["sqlite", "postgres"], default="sqlite")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="where the JSON goes as well")
    arguments = parser.parse_args()
    result = run(arguments)
    print(json.dumps(result, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    return 1 if result["violations"] else 0


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """One service from its first job to the check of everything."""
    directory = Path(tempfile.mkdtemp(prefix="espalier-chaos-"))
    started = time.monotonic()
    with service(arguments.database, directory) as (settings, servers):
        migrate(settings)
        engine = create_engine(settings)
        factory = session_factory(engine)
        (directory / "logs").mkdir()
        with Processes(settings, directory / "logs") as processes:
            chaos = Chaos(settings, factory, processes, random.Random(arguments.seed), servers)
            rage(chaos, factory, arguments)
            raged = time.monotonic() - started
            under_faults = _count_increments(factory)
            heal(chaos, factory)
        told = tell(chaos, factory)
        violations = [*chaos.died, *told["errors"], *check(factory, settings)]
        engine.dispose()
    if not violations:
        # A child that was frozen may write its last a moment after its worker is gone.
        shutil.rmtree(directory, ignore_errors=True)
    return {
        "database": arguments.database,
        "seed": arguments.seed,
        "seconds_of_faults": round(raged, 1),
        "seconds": round(time.monotonic() - started, 1),
        "processors": len(psutil.Process().cpu_affinity()),
        "load_average": psutil.getloadavg(),
        "workers": WORKERS,
        "increments_under_faults": under_faults,
        **told,
        "kept_in": str(directory) if violations else None,
        "violations": violations,
    }


if __name__ == "__main__":
    sys.exit(main())
