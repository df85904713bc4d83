"""One look at the database for all who wait: streams of a process share a poller."""

import asyncio
import math
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator
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
    woken: asyncio.Future[bool]
    """Whether anything happened."""


def _wake(waiter: _Waiter, happened: bool) -> None:
    if not waiter.woken.done():
        waiter.woken.set_result(happened)


def _still_there(waiting: Iterable[asyncio.Future[Any]]) -> Iterator[asyncio.Future[Any]]:
    """Those who have not left meanwhile."""
    return (one for one in waiting if not one.done())


class JobWatcher:
    """Wakes who waits for a job. Lives in one event loop; looks only while somebody waits."""

    def __init__(
        self, sessions: SessionFactory, *, poll_seconds: float, stopping: threading.Event
    ) -> None:
        self._sessions = sessions
        self._poll_seconds = poll_seconds
        self._stopping = stopping
        self._waiting: dict[str, list[_Waiter]] = {}
        self._asking: dict[Hashable, list[asyncio.Future[Any]]] = {}
        self._reading: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None

    async def shared(self, what: Hashable, read: Callable[[], Result]) -> Result:
        """What `read` returns; who asks for the same while it is being read gets the same.

        Streams that are woken together ask for the same: it is read once for all of them.
        """
        told: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        others = self._asking.get(what)
        if others is None:
            self._asking[what] = [told]
            task = asyncio.create_task(self._read(what, read))
            self._reading.add(task)
            task.add_done_callback(self._reading.discard)
        else:
            others.append(told)
        return await told

    async def _read(self, what: Hashable, read: Callable[[], Result]) -> None:
        try:
            found = await run_in_threadpool(read)
        except Exception as error:  # noqa: BLE001  # Whatever it is, those who ask get it.
            for told in _still_there(self._asking.pop(what)):
                told.set_exception(error)
        else:
            for told in _still_there(self._asking.pop(what)):
                told.set_result(found)

    async def wait(self, job_id: str, seen: Mark, seconds: float = math.inf) -> bool:
        """Return True once the job does not stand at `seen`, or the process ends; else False.

        Raises:
            SQLAlchemyError: the database is away.
        """
        loop = asyncio.get_running_loop()
        waiter = _Waiter(seen, loop.create_future())
        self._waiting.setdefault(job_id, []).append(waiter)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._poll())
        # A timer alone: a timeout around it is half of what waiting costs.
        timer = loop.call_later(seconds, _wake, waiter, False) if math.isfinite(seconds) else None
        try:
            return await waiter.woken
        finally:
            if timer is not None:
                timer.cancel()
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
            self._wake_all(marks)

    def _look(self, job_ids: Iterable[str]) -> dict[str, Mark]:
        columns = (Job.version, Job.last_event_seq, Job.step, Job.status)
        query = select(Job.id, *columns).where(Job.id.in_(job_ids))
        with reading(self._sessions) as session:
            return {row[0]: Mark(*row[1:]) for row in session.execute(query)}

    def _wake_all(self, marks: dict[str, Mark]) -> None:
        over = self._stopping.is_set()
        for job_id, waiters in self._waiting.items():
            for waiter in waiters:
                if over or marks.get(job_id) != waiter.seen:
                    _wake(waiter, True)

    def _fail(self, error: SQLAlchemyError) -> None:
        for waiters in self._waiting.values():
            for waiter in waiters:
                if not waiter.woken.done():
                    waiter.woken.set_exception(error)
