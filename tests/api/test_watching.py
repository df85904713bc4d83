"""All streams of a process look at the database together."""

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, event

from api.watching import JobWatcher, mark_of
from registry import jobs
from registry.db import SessionFactory, reading, transaction
from registry.tables import Job

POLL_SECONDS = 0.02


@pytest.fixture
def statements(engine: Engine) -> Iterator[list[str]]:
    """Every SELECT that is sent."""
    sent: list[str] = []

    def note(_c: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.lstrip().startswith("SELECT"):
            sent.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    yield sent
    event.remove(engine, "before_cursor_execute", note)


@pytest.fixture
def watcher(factory: SessionFactory) -> JobWatcher:
    return JobWatcher(factory, poll_seconds=POLL_SECONDS, stopping=threading.Event())


def test_many_who_wait_cost_one_query_a_look(
    watcher: JobWatcher, factory: SessionFactory, job_id: str, statements: list[str]
) -> None:
    with reading(factory) as session:
        seen = mark_of(session.get_one(Job, job_id))

    async def scenario() -> int:
        waiters = [asyncio.create_task(watcher.wait(job_id, seen)) for _ in range(100)]
        await asyncio.sleep(10 * POLL_SECONDS)
        looks = len(statements)
        assert not any(waiter.done() for waiter in waiters)
        with transaction(factory) as session:
            jobs.request_cancel(session, jobs.lock(session, job_id))
        await asyncio.wait_for(asyncio.gather(*waiters), 10)
        return looks

    assert 1 <= asyncio.run(scenario()) <= 11


def test_who_has_not_seen_the_latest_is_woken_at_once(
    watcher: JobWatcher, factory: SessionFactory, job_id: str
) -> None:
    with reading(factory) as session:
        seen = mark_of(session.get_one(Job, job_id))
    asyncio.run(asyncio.wait_for(watcher.wait(job_id, seen._replace(last_event_seq=0)), 10))


def test_a_process_that_ends_lets_everyone_go(factory: SessionFactory, job_id: str) -> None:
    stopping = threading.Event()
    watcher = JobWatcher(factory, poll_seconds=POLL_SECONDS, stopping=stopping)
    with reading(factory) as session:
        seen = mark_of(session.get_one(Job, job_id))

    async def scenario() -> None:
        waiting = asyncio.create_task(watcher.wait(job_id, seen))
        await asyncio.sleep(2 * POLL_SECONDS)
        stopping.set()
        await asyncio.wait_for(waiting, 10)

    asyncio.run(scenario())


def test_what_many_ask_for_at_once_is_read_once(watcher: JobWatcher) -> None:
    reads: list[str] = []

    def read() -> str:
        reads.append("once")
        time.sleep(POLL_SECONDS)
        return "news"

    async def scenario() -> list[str]:
        leaving = asyncio.create_task(watcher.shared("job", read))
        staying = [asyncio.create_task(watcher.shared("job", read)) for _ in range(20)]
        await asyncio.sleep(0)
        leaving.cancel()
        found = await asyncio.gather(*staying)
        assert await watcher.shared("job", read) == "news"
        return found

    assert asyncio.run(scenario()) == ["news"] * 20
    assert len(reads) == 2


def test_who_waits_long_enough_hears_that_nothing_happened(
    watcher: JobWatcher, factory: SessionFactory, job_id: str
) -> None:
    with reading(factory) as session:
        seen = mark_of(session.get_one(Job, job_id))
    assert asyncio.run(watcher.wait(job_id, seen, 3 * POLL_SECONDS)) is False
