"""One look at the database for all who wait: streams of a process share a poller."""

import asyncio
import math
import threading
from collections.abc import Callable, Hashable, Iterable
from typing import Any, NamedTuple, TypeVar

from fastapi.concurrency import run_in_threadpool
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from registry.db import SessionFactory, reading
from registry.job_rows import JobRow
from registry.status import JobStatus
from registry.tables import Job

Result = TypeVar("Result")


class Mark(NamedTuple):
    """What changes whenever there is something to tell of a job."""

    version: int
    last_event_seq: int
    step: int
    status: JobStatus


def mark_of(job: Job | JobRow) -> Mark:
    """Where a job stands."""
    return Mark(job.version, job.last_event_seq, job.step, job.status)


class _Waiter(NamedTuple):
    seen: Mark
    woken: asyncio.Future[None]


class JobWatcher:
    """Wakes who waits for a job. Lives in one event loop; looks only while somebody waits."""

    def __init__(
        self, sessions: SessionFactory, *, poll_seconds: float, stopping: threading.Event
    ) -> None:
        self._sessions = sessions
        self._poll_seconds = poll_seconds
        self._stopping = stopping
        self._waiting: dict[str, list[_Waiter]] = {}
        self._reading: dict[Hashable, asyncio.Task[Any]] = {}
        self._task: asyncio.Task[None] | None = None

    async def shared(self, what: Hashable, read: Callable[[], Result]) -> Result:
        """What `read` returns; who asks for the same while it is being read gets the same.

        Streams that are woken together ask for the same: it is read once for all of them.
        """
        task: asyncio.Task[Result] | None = self._reading.get(what)
        if task is None:
            task = self._reading[what] = asyncio.create_task(run_in_threadpool(read))
            task.add_done_callback(lambda _: self._reading.pop(what))
        # Who leaves must not take it from the others.
        return await asyncio.shield(task)

    async def wait(self, job_id: str, seen: Mark, seconds: float = math.inf) -> bool:
        """Return True once the job does not stand at `seen`, or the process ends; else False.

        Raises:
            SQLAlchemyError: the database is away.
        """
        waiter = _Waiter(seen, asyncio.get_running_loop().create_future())
        self._waiting.setdefault(job_id, []).append(waiter)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._poll())
        try:
            async with asyncio.timeout(seconds if math.isfinite(seconds) else None):
                await waiter.woken
        except TimeoutError:
            return False
        else:
            return True
        finally:
            waiters = self._waiting[job_id]
            waiters.remove(waiter)
            if not waiters:
                del self._waiting[job_id]

    async def _poll(self) -> None:
        while self._waiting:
            await asyncio.sleep(self._poll_seconds)
            try:
                marks = await run_in_threadpool(self._look, list(self._waiting))
            except SQLAlchemyError as error:
                self._fail(error)
                return
            self._wake(marks)

    def _look(self, job_ids: Iterable[str]) -> dict[str, Mark]:
        columns = (Job.version, Job.last_event_seq, Job.step, Job.status)
        query = select(Job.id, *columns).where(Job.id.in_(job_ids))
        with reading(self._sessions) as session:
            return {row[0]: Mark(*row[1:]) for row in session.execute(query)}

    def _wake(self, marks: dict[str, Mark]) -> None:
        over = self._stopping.is_set()
        for job_id, waiters in self._waiting.items():
            for waiter in waiters:
                if (over or marks.get(job_id) != waiter.seen) and not waiter.woken.done():
                    waiter.woken.set_result(None)

    def _fail(self, error: SQLAlchemyError) -> None:
        for waiters in self._waiting.values():
            for waiter in waiters:
                if not waiter.woken.done():
                    waiter.woken.set_exception(error)
