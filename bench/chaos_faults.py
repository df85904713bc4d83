"""What `bench.chaos` does to a service in processes: every fault aimed at an attempt that runs."""

import random
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError

from registry import attempts
from registry.db import SessionFactory, database_now, reading
from registry.queue import celery_app, publisher
from registry.settings import Settings
from registry.tables import IS_LEASED, Job, OutboxMessage
from tests.worker.processes import SWEEPER, WORKER, Processes, children_of, kill

WORKERS = 3
_EXIT_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class Target:
    """An attempt that runs now: its worker, by number, and its child."""

    job_id: str
    fence: int
    worker: int
    child: psutil.Process


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What is done, and the cause under which the attempt that it was aimed at must end, if any."""

    strike: Callable[[Target], None]
    ends: str | None = None


@dataclass(frozen=True, kw_only=True)
class Strike:
    """One fault as it happened: at whom, and how many attempts were running."""

    fault: str
    target: Target
    num_running: int


class Chaos:
    """A service in processes, and what can be done to it."""

    def __init__(
        self,
        settings: Settings,
        factory: SessionFactory,
        processes: Processes,
        dice: random.Random,
        servers: dict[str, Callable[[], None]],
    ) -> None:
        self.strikes: list[Strike] = []
        self.died: list[str] = []
        self._doomed: set[tuple[str, int]] = set()
        self._settings = settings
        self._factory = factory
        self._processes = processes
        self._dice = dice
        self._workers = [processes.start(WORKER) for _ in range(WORKERS)]
        self._sweeper = processes.start(SWEEPER)
        self._frozen: list[tuple[float, int, tuple[psutil.Process, ...]]] = []
        self.faults: dict[str, Fault] = {
            "run killed": Fault(strike=lambda target: target.child.kill(), ends="killed"),
            "run hangs": Fault(strike=lambda target: target.child.suspend(), ends="stalled"),
            "worker killed": Fault(strike=self._kill_worker, ends="lease_expired"),
            "worker frozen past its lease": Fault(strike=self._freeze, ends="lease_expired"),
            "worker told to end": Fault(strike=self._end_worker, ends="shutdown"),
            "sweeper killed": Fault(strike=self._kill_sweeper),
            "hints repeated out of order": Fault(strike=self._repeat_hints),
            **{name: Fault(strike=lambda _, hit=hit: hit()) for name, hit in servers.items()},  # type: ignore[misc]
        }

    def strike(self) -> bool:
        """One fault, chosen by chance, at an attempt chosen by chance; False if none is running.

        An attempt that was to be ended by one is no target any more.
        """
        self.tend()
        running = self._running()
        targets = [t for t in running if (t.job_id, t.fence) not in self._doomed]
        if not targets:
            return False
        name, target = self._dice.choice(sorted(self.faults)), self._dice.choice(targets)
        with suppress(psutil.NoSuchProcess):  # It was over in this very moment.
            self.faults[name].strike(target)
        self.strikes.append(Strike(fault=name, target=target, num_running=len(running)))
        if self.faults[name].ends is not None:
            self._doomed.add((target.job_id, target.fence))
        return True

    def tend(self) -> None:
        """Wake those that were frozen for long enough, and note who died without being killed."""
        now = time.monotonic()
        for entry in [entry for entry in self._frozen if entry[0] <= now]:
            self._frozen.remove(entry)
            for process in entry[2]:
                with suppress(psutil.NoSuchProcess):
                    process.resume()
        for number, worker in enumerate(self._workers):
            if worker.poll() is not None:
                self.died.append(f"worker {number} ended by itself with {worker.returncode}")
                self._workers[number] = self._processes.start(WORKER)
        if self._sweeper.poll() is not None:
            self.died.append(f"the sweeper ended by itself with {self._sweeper.returncode}")
            self._sweeper = self._processes.start(SWEEPER)

    def _running(self) -> list[Target]:
        """Attempts under a lease that holds, whose child is at work; none while nobody can say."""
        frozen = {number for _, number, _ in self._frozen}
        numbers = {w.pid: n for n, w in enumerate(self._workers) if n not in frozen}
        found = []
        with suppress(DBAPIError), reading(self._factory) as session:
            query = select(Job).where(text(IS_LEASED), Job.lease_until > database_now(session))
            for job in session.scalars(query.order_by(Job.id)):
                number = numbers.get(int((job.lease_owner or "").rpartition(":")[2]))
                child = None if number is None else self._child(number, job)
                if number is not None and child is not None:
                    found.append(Target(job_id=job.id, fence=job.fence, worker=number, child=child))
        return found

    def _child(self, number: int, job: Job) -> psutil.Process | None:
        """The child that prints to the log of this attempt; another one waits beside it."""
        log = self._settings.data_dir / attempts.log_name(job.id, job.fence)
        with suppress(psutil.NoSuchProcess):
            for child in children_of(self._workers[number]):
                with suppress(OSError):
                    if Path(f"/proc/{child.pid}/fd/1").readlink() == log:
                        return child
        return None

    def _kill_worker(self, target: Target) -> None:
        kill(self._workers[target.worker])
        self._workers[target.worker] = self._processes.start(WORKER)

    def _freeze(self, target: Target) -> None:
        both = (psutil.Process(self._workers[target.worker].pid), target.child)
        for process in both:
            process.suspend()
        until = time.monotonic() + self._settings.lease_seconds + self._dice.uniform(1.0, 3.0)
        self._frozen.append((until, target.worker, both))

    def _end_worker(self, target: Target) -> None:
        worker = self._workers[target.worker]
        worker.send_signal(signal.SIGTERM)
        try:
            code = worker.wait(_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self.died.append(f"worker {target.worker} had not ended after {_EXIT_SECONDS:g} s")
            kill(worker)
        else:
            if code != 0:
                self.died.append(f"worker {target.worker}, told to end, exited with {code}")
        self._workers[target.worker] = self._processes.start(WORKER)

    def _kill_sweeper(self, _target: Target) -> None:
        kill(self._sweeper)
        self._sweeper = self._processes.start(SWEEPER)

    def _repeat_hints(self, _target: Target) -> None:
        send = publisher(celery_app(self._settings))
        with suppress(DBAPIError), reading(self._factory) as session:
            messages = 3 * list(session.scalars(select(OutboxMessage).limit(20)))
            self._dice.shuffle(messages)
            for message in messages:
                with suppress(Exception):  # The broker may be away; that is a fault too.
                    send(message)
