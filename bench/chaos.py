"""`python -m bench.chaos --minutes 10 --database postgres`: random faults over real processes.

Jobs of stand-in children (their files are random, so that work done twice cannot look like work
done once) run on real workers and sweepers while these are killed, frozen and stopped, hints are
repeated, the broker dies with all it knew, and the database loses its power or falls silent.
Afterwards every job must have succeeded, its history must hold, and every stored byte must be what
it was. Prints JSON; exits with 1 on a violation.
"""

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
from sqlalchemy import func, select
from sqlalchemy.exc import DBAPIError

from registry import api_keys, fsck, garbage, outbox
from registry.db import SessionFactory, create_engine, reading, session_factory, transaction
from registry.migrate import migrate
from registry.queue import celery_app, publisher
from registry.settings import Settings
from registry.status import JobStatus
from registry.storage import store_for
from registry.tables import Increment, Job
from tests.servers import free_port, postgres_that_restarts, redis_server
from tests.worker.blackhole import proxied
from tests.worker.conftest import STAND_IN, submit_stand_in
from tests.worker.history import check_history
from tests.worker.processes import SWEEPER, WORKER, Processes, children_of, kill

INCREMENTS = 20
WORKERS = 3
LEASE_SECONDS = 3.0
PAUSE_SECONDS = (0.3, 1.5)
"""Between two faults, by chance."""
_PATIENCE_SECONDS = 600.0


class Chaos:
    """A service in processes, and what is done to it."""

    def __init__(
        self,
        settings: Settings,
        factory: SessionFactory,
        processes: Processes,
        dice: random.Random,
        servers: dict[str, Callable[[], None]],
    ) -> None:
        self.settings = settings
        self.factory = factory
        self.processes = processes
        self.dice = dice
        self.done: Counter[str] = Counter()
        self.workers = [processes.start(WORKER) for _ in range(WORKERS)]
        self.sweeper = processes.start(SWEEPER)
        self.faults: dict[str, Callable[[], None]] = {
            "child killed": self.kill_child,
            "child frozen past its lease": self.freeze_child,
            "worker killed": self.kill_worker,
            "worker asked to end": self.end_worker,
            "sweeper killed": self.kill_sweeper,
            "hints repeated": self.repeat_hints,
            **servers,
        }

    def strike(self) -> None:
        """One fault, chosen by chance."""
        name = self.dice.choice(sorted(self.faults))
        self.faults[name]()
        self.done[name] += 1

    def kill_child(self) -> None:
        for child in self._children()[:1]:
            with suppress(psutil.NoSuchProcess):
                child.kill()

    def freeze_child(self) -> None:
        for child in self._children()[:1]:
            with suppress(psutil.NoSuchProcess):
                child.suspend()
                time.sleep(LEASE_SECONDS + 1)
                child.resume()

    def kill_worker(self) -> None:
        number = self.dice.randrange(WORKERS)
        kill(self.workers[number])
        self.workers[number] = self.processes.start(WORKER)

    def end_worker(self) -> None:
        number = self.dice.randrange(WORKERS)
        self.workers[number].send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.workers[number].wait(30)
        kill(self.workers[number])
        self.workers[number] = self.processes.start(WORKER)

    def kill_sweeper(self) -> None:
        kill(self.sweeper)
        self.sweeper = self.processes.start(SWEEPER)

    def repeat_hints(self) -> None:
        send = publisher(celery_app(self.settings))
        with suppress(DBAPIError), reading(self.factory) as session:
            messages = session.scalars(select(outbox.OutboxMessage).limit(20)).all()
            for message in messages * 3:
                with suppress(Exception):  # The broker may be away; that is a fault too.
                    send(message)

    def _children(self) -> list[psutil.Process]:
        found = []
        for worker in self.workers:
            with suppress(psutil.NoSuchProcess):
                found += children_of(worker)
        self.dice.shuffle(found)
        return found


@contextmanager
def service(database: str, directory: Path) -> Iterator[tuple[Settings, dict[str, Callable]]]:  # type: ignore[type-arg]
    """Settings of an empty service, and the faults that its servers can have."""
    fields = {
        "data_dir": directory / "data",
        "child_command": STAND_IN,
        "lease_seconds": LEASE_SECONDS,
        "rehint_seconds": 1.0,
        "backoff_seconds": 0.0,
        "slice_seconds": 20.0,
        "collect_seconds": 1.0,
        "storage_reserve_bytes": 0,
        "database_answer_seconds": 2.0,
    }
    if database == "sqlite":
        yield Settings(**fields), {}
        return
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
            "database falls silent": silence,
            "broker forgets": restart_broker,
        }
        yield Settings(**fields, database_url=url, broker_url=f"redis://127.0.0.1:{port}/0"), faults


def rage(chaos: Chaos, arguments: argparse.Namespace) -> list[str]:
    """Keep a few jobs under way and strike until there was enough of all; the jobs' ids."""
    job_ids: list[str] = []
    until = time.monotonic() + 60 * arguments.minutes
    while (
        time.monotonic() < until
        or chaos.done.total() < arguments.faults
        or _count_increments(chaos.factory) < arguments.increments
    ):
        with suppress(DBAPIError):
            while _count_open(chaos.factory) < 2 * WORKERS:
                job_ids.append(_submit(chaos.factory))
        time.sleep(chaos.dice.uniform(*PAUSE_SECONDS))
        chaos.strike()
    return job_ids


def _submit(factory: SessionFactory) -> str:
    with transaction(factory) as session:
        tenant_id = api_keys.get_or_create_tenant(session).id
    return submit_stand_in(factory, tenant_id, INCREMENTS, 100, {"step_seconds": 0.02})


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


def check(factory: SessionFactory, settings: Settings) -> tuple[int, list[str]]:
    """Increments committed, and every promise that was not kept."""
    store = store_for(settings.artifacts_url)
    with reading(factory) as session:
        jobs = session.scalars(select(Job)).all()
        increments = session.execute(select(func.count()).select_from(Increment)).scalar_one()
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
    return increments, violations


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="at least so long")
    parser.add_argument("--faults", type=int, default=0, help="at least so many")
    parser.add_argument("--increments", type=int, default=0, help="at least so many under faults")
    parser.add_argument("--database", choices=["sqlite", "postgres"], default="sqlite")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="espalier-chaos-"))
    started = time.monotonic()
    with service(arguments.database, directory) as (settings, servers):
        migrate(settings)
        engine = create_engine(settings)
        factory = session_factory(engine)
        (directory / "logs").mkdir()
        with Processes(settings, directory / "logs") as processes:
            chaos = Chaos(settings, factory, processes, random.Random(arguments.seed), servers)
            job_ids = rage(chaos, arguments)
            raged = time.monotonic() - started
            under_faults = _count_increments(factory)
            deadline = time.monotonic() + _PATIENCE_SECONDS
            while not _all_ended(factory) and time.monotonic() < deadline:
                time.sleep(0.5)
        increments, violations = check(factory, settings)
        engine.dispose()
    result = {
        "database": arguments.database,
        "seed": arguments.seed,
        "seconds_of_faults": round(raged, 1),
        "seconds": round(time.monotonic() - started, 1),
        "processors": psutil.cpu_count(),
        "load_average": psutil.getloadavg(),
        "workers": WORKERS,
        "jobs": len(job_ids),
        "increments": increments,
        "increments_under_faults": under_faults,
        "faults": dict(sorted(chaos.done.items())),
        "num_faults": sum(chaos.done.values()),
        "violations": violations,
    }
    print(json.dumps(result, indent=1))
    if not violations:
        # A child that was frozen may write its last a moment after its worker is gone.
        shutil.rmtree(directory, ignore_errors=True)
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
