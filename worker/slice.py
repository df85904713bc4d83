"""Watching one child: its events go up, the wishes of user, operator and clock go down."""

import logging
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

from pruning.events import Event, IncrementFinished
from registry.db import reading
from registry.errors import LeaseLost
from registry.leases import Lease
from registry.status import JobStatus
from registry.tables import Job
from worker.child import Child
from worker.heartbeat import Heartbeat
from worker.publish import publish
from worker.recorder import Recorder
from worker.verdict import GENTLE, Stop
from worker.workplace import Workplace

_LISTEN_SECONDS = 0.1

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Slice:
    """One child at work. `stop` says why it was stopped, `committed_final` that the job is done."""

    workplace: Workplace
    lease: Lease
    heartbeat: Heartbeat
    child: Child
    recorder: Recorder
    out_dir: Path
    stop: Stop | None = None
    committed_final: bool = False
    _started_at: float = field(default_factory=time.monotonic)
    _heard_at: float = field(default_factory=time.monotonic)
    _kill_at: float | None = None
    _increments: int = 0

    def watch(self) -> None:
        """Listen until the child has said its last.

        Raises:
            LeaseLost: the job is someone else's now.
        """
        while not self.child.ended:
            event = self.child.next_event(_LISTEN_SECONDS)
            if event is not None:
                self._heard_at = time.monotonic()
                self._take(event)
            self.recorder.flush_if_due()
            self._obey()

    def _take(self, event: Event) -> None:
        if self.committed_final:
            return
        self.recorder.record(event)
        if isinstance(event, IncrementFinished):
            self._keep(event)

    def _keep(self, event: IncrementFinished) -> None:
        if self.heartbeat.status is JobStatus.CANCELLING:
            return
        self.recorder.publishing(event.increment)
        checkpoint = publish(self.workplace, self.lease, self.out_dir, event)
        # The store has it; masters and moments of many increments would fill the disk of the host.
        shutil.rmtree(self.out_dir / event.directory, ignore_errors=True)
        self._increments += 1
        self.committed_final = checkpoint.final
        logger.info("job %s: increment %d committed", self.lease.job_id, event.increment)

    def _obey(self) -> None:
        wish = self._wish()
        if wish is not None and (self.stop is None or (self.stop in GENTLE and wish not in GENTLE)):
            self._order(wish)
        if self.stop is Stop.SHUTDOWN and self._kill_at is None:
            self._kill_at = time.monotonic() + self.workplace.settings.stop_grace_seconds
        if self._kill_at is not None and time.monotonic() >= self._kill_at:
            self.child.kill()
        if self.stop is Stop.LOST:
            raise LeaseLost(f"lease {self.lease.fence} of {self.lease.job_id} is over")

    def _wish(self) -> Stop | None:
        if self.committed_final:
            return None
        if self.heartbeat.lost:
            return Stop.LOST
        if self.heartbeat.status is JobStatus.CANCELLING:
            return Stop.CANCEL
        if self._is_stalled():
            return Stop.STALLED
        # A worker that ends has to; a pause or the end of a slice has time.
        if self.workplace.stopping.is_set():
            return Stop.SHUTDOWN
        if self.heartbeat.status is JobStatus.PAUSING:
            return Stop.PAUSE
        return self._turn_is_over()

    def _turn_is_over(self) -> Stop | None:
        if self._increments == 0:
            return None  # Or a job longer than a slice would never get on.
        if self.heartbeat.outranked:
            return Stop.PREEMPTED
        elapsed = time.monotonic() - self._started_at
        return Stop.SLICE if elapsed >= self.workplace.settings.slice_seconds else None

    def _is_stalled(self) -> bool:
        return time.monotonic() - self._heard_at > self.workplace.settings.stall_seconds

    def _order(self, wish: Stop) -> None:
        logger.info("job %s: stopping the child: %s", self.lease.job_id, wish.value)
        self.stop = wish
        if wish in GENTLE and not (wish is Stop.PAUSE and self._may_lose_increment()):
            self.child.terminate()
        else:
            self.child.kill()

    def _may_lose_increment(self) -> bool:
        with reading(self.workplace.factory) as session:
            job = session.get_one(Job, self.lease.job_id)
            return job.pause_mode == "latest"
