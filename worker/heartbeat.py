"""Threads that keep saying "alive": of a lease, and of the worker itself."""

import logging
import threading
import time
from types import TracebackType
from typing import Self

from sqlalchemy import select
from sqlalchemy.exc import DBAPIError

from registry import attempts, leases, scheduling, workers
from registry.db import reading, transaction
from registry.errors import LeaseLost
from registry.leases import Lease
from registry.status import JobStatus
from registry.tables import Job
from worker.energy import EnergyMeter
from worker.utilisation import Utilisation
from worker.workplace import Workplace

_LOOK_SECONDS = 1.0
_PRESENCE_SECONDS = 10.0

logger = logging.getLogger(__name__)


class Heartbeat:
    """Renews a lease while the block runs, and sees what becomes of the job.

    `status` is the job's status when last seen, `lost` whether the lease is over, `outranked`
    whether it shall make room for another job. A database that does not answer is none of these:
    fencing decides later.
    """

    def __init__(self, workplace: Workplace, lease: Lease) -> None:
        self.status = JobStatus.RUNNING
        self.outranked = False
        self._workplace = workplace
        self._lease = lease
        self._meter = EnergyMeter()
        self._lost = threading.Event()
        self._done = threading.Event()
        self._thread = threading.Thread(
            target=self._beat, name=f"lease-{lease.job_id}", daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join()
        try:
            self._record_energy()
        except DBAPIError as error:
            logger.warning("energy not written: %s", type(error.orig).__name__)

    @property
    def lost(self) -> bool:
        """Whether someone else may hold the job now."""
        return self._lost.is_set()

    def _beat(self) -> None:
        interval = self._lease.seconds / 3
        renewed = time.monotonic()
        while not self._done.wait(min(_LOOK_SECONDS, interval)):
            try:
                if time.monotonic() - renewed >= interval:
                    self._renew()
                    renewed = time.monotonic()
                else:
                    self._look()
            except LeaseLost:
                self._lost.set()
                return
            except DBAPIError as error:
                logger.warning("lease not renewed: %s", type(error.orig).__name__)

    def _renew(self) -> None:
        with transaction(self._workplace.factory) as session:
            self.status = leases.renew(session, self._lease)
        self._record_energy()
        queues = self._workplace.settings.queues
        with reading(self._workplace.factory) as session:
            self.outranked = scheduling.is_outranked(session, self._lease.job_id, queues)

    def _record_energy(self) -> None:
        joules = self._meter.joules()
        if joules is None:
            return
        with transaction(self._workplace.factory) as session:
            attempts.record_energy(session, self._lease.job_id, self._lease.fence, joules)

    def _look(self) -> None:
        # Cheaper than renewing, so that a user who cancels does not wait a third of a lease.
        query = select(Job.status).where(
            Job.id == self._lease.job_id, Job.fence == self._lease.fence
        )
        with reading(self._workplace.factory) as session:
            status = session.execute(query).scalar_one_or_none()
        if status is None:
            raise LeaseLost(self._lease.job_id)
        self.status = status


class Presence:
    """Writes the worker's own heartbeat until stopped; `current_job_id` is what it works on."""

    def __init__(self, workplace: Workplace) -> None:
        self.current_job_id: str | None = None
        self._workplace = workplace
        self._utilisation = Utilisation(workplace.settings.child_device)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="presence", daemon=True)

    def start(self) -> None:
        """Register the worker and go on."""
        self._thread.start()

    def stop(self) -> None:
        """Say goodbye."""
        self._done.set()
        if self._thread.is_alive():
            self._thread.join()
        self._write("stopped")

    def _run(self) -> None:
        while not self._done.is_set():
            self._write("draining" if self._workplace.stopping.is_set() else "online")
            self._done.wait(_PRESENCE_SECONDS)

    def _write(self, status: workers.WorkerStatus) -> None:
        try:
            with transaction(self._workplace.factory) as session:
                workers.beat(
                    session,
                    self._workplace.identity,
                    status=status,
                    current_job_id=self.current_job_id,
                    utilisation=self._utilisation.read(),
                )
        except DBAPIError as error:
            logger.warning("heartbeat not written: %s", type(error.orig).__name__)
