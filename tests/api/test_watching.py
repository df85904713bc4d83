"""All streams of a process look at the database together."""

import asyncio
import threading
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
