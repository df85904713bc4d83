"""How soon a job goes on after the death of its worker, and how soon a worker ends when told to.

Real workers and a sweeper with stand-in children, on SQLite with files and on Postgres with Valkey.
"""

import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import select

from bench.figures import Figure
from registry import api_keys, events
from registry.db import SessionFactory, create_engine, reading, session_factory, transaction
from registry.migrate import migrate
from registry.settings import Settings
from registry.status import JobStatus
from registry.tables import Job, Worker
from tests.servers import postgres_server, redis_server
from tests.worker.conftest import STAND_IN, submit_stand_in
from tests.worker.processes import SWEEPER, WORKER, Processes, kill, wait_until

LEASE_SECONDS = 3.0
STEP_SECONDS, STEPS = 0.25, 4
INCREMENT_SECONDS = STEPS * STEP_SECONDS
INCREMENTS = 3
ROUNDS = 6
GOES_ON_SECONDS = 3.0
ENDS_SECONDS = 2.0


class Stage:
    """A running service of two workers and a sweeper."""

    def __init__(self, factory: SessionFactory, processes: Processes) -> None:
        self._factory = factory
        self._processes = processes
        processes.start(SWEEPER)
        self._workers = [processes.start(WORKER) for _ in range(2)]
        with transaction(factory) as session:
            self._tenant_id = api_keys.get_or_create_tenant(session).id

    def seconds_to_go_on(self) -> float:
        """Kill the worker of a running job, with all below it, and see the other one go on."""
        job_id, worker = self._running_job()
        killed_at = datetime.now(UTC)
        kill(worker)
        self._replace(worker)
        wait_until(lambda: self._begun_after(job_id, killed_at))
        begun = self._begun_after(job_id, killed_at)[0]
        self._wait_for_end(job_id)
        return (begun - killed_at).total_seconds()

    def seconds_to_end(self) -> float:
        """Tell the worker of a running job to end, and wait until it has."""
        job_id, worker = self._running_job()
        told_at = time.monotonic()
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(60) == 0
        seconds = time.monotonic() - told_at
        self._replace(worker)
        self._wait_for_end(job_id)
        return seconds

    def _running_job(self) -> tuple[str, subprocess.Popen[bytes]]:
        """A job in its second increment, and its worker; the other worker is ready."""
        wait_until(lambda: self._online() == {worker.pid for worker in self._workers})
        job_id = submit_stand_in(
            self._factory, self._tenant_id, INCREMENTS, 4, {"step_seconds": STEP_SECONDS}
        )
        wait_until(lambda: self._job(job_id).increments_done >= 1)
        holder = int((self._job(job_id).lease_owner or "").rpartition(":")[2])
        return job_id, next(worker for worker in self._workers if worker.pid == holder)

    def _online(self) -> set[int]:
        running = {worker.pid for worker in self._workers}
        with reading(self._factory) as session:
            rows = session.scalars(select(Worker).where(Worker.status == "online"))
            return {row.pid for row in rows} & running

    def _replace(self, worker: subprocess.Popen[bytes]) -> None:
        self._workers.remove(worker)
        self._workers.append(self._processes.start(WORKER))

    def _begun_after(self, job_id: str, moment: datetime) -> list[datetime]:
        with reading(self._factory) as session:
            log = events.list_after(session, job_id, 0, 10_000)
        begun = [event.created_at for event in log if event.type == "increment.started"]
        return [at for at in begun if at > moment]

    def _wait_for_end(self, job_id: str) -> None:
        wait_until(lambda: self._job(job_id).finished_at)
        assert self._job(job_id).status is JobStatus.SUCCEEDED

    def _job(self, job_id: str) -> Job:
        with reading(self._factory) as session:
            return session.get_one(Job, job_id)


def measure_recovery() -> tuple[list[Figure], dict[str, Any]]:
    """From SIGKILL to the next increment, and from SIGTERM to the exit; each `ROUNDS` times."""
    figures, details = [], {}
    for kind in ("sqlite", "postgres"):
        with _stage(kind) as stage:
            goes_on = [stage.seconds_to_go_on() for _ in range(ROUNDS)]
            ends = [stage.seconds_to_end() for _ in range(ROUNDS)]
        figures += [
            Figure(
                what=f"worker killed to next increment, beyond the lease, max of {ROUNDS}, {kind}",
                bar=GOES_ON_SECONDS,
                figure=max(goes_on) - LEASE_SECONDS,
                unit="s",
            ),
            Figure(
                what=f"SIGTERM to exit, beyond one increment, max of {ROUNDS}, {kind}",
                bar=ENDS_SECONDS,
                figure=max(ends) - INCREMENT_SECONDS,
                unit="s",
            ),
        ]
        details[kind] = {"killed_to_next_increment": goes_on, "told_to_exit": ends}
    settings = {"lease_seconds": LEASE_SECONDS, "increment_seconds": INCREMENT_SECONDS}
    return figures, {**settings, **details}


@contextmanager
def _stage(kind: str) -> Iterator[Stage]:
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        directory = Path(name)
        servers: dict[str, Any] = {}
        if kind == "postgres":
            servers = {
                "database_url": stack.enter_context(postgres_server()),
                "broker_url": stack.enter_context(redis_server()),
            }
        settings = Settings(
            data_dir=directory / "data",
            child_command=STAND_IN,
            lease_seconds=LEASE_SECONDS,
            storage_reserve_bytes=0,
            **servers,
        )
        migrate(settings)
        engine = create_engine(settings)
        stack.callback(engine.dispose)
        (directory / "logs").mkdir()
        processes = stack.enter_context(Processes(settings, directory / "logs"))
        yield Stage(session_factory(engine), processes)
