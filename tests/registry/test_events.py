"""The event log has no gaps, whoever writes at once, and whatever is rolled back."""

import threading

from registry import events, jobs
from registry.db import SessionFactory, reading, transaction
from registry.settings import Settings
from tests.registry.conftest import MakeJob

WRITERS, EVENTS = 4, 10


def test_concurrent_writers_number_events_without_a_gap(
    session, make_job: MakeJob, factory: SessionFactory, settings: Settings
) -> None:  # type: ignore[no-untyped-def]
    job = make_job()
    session.commit()

    def write() -> None:
        for _ in range(EVENTS):
            with transaction(factory) as own:
                events.append(own, jobs.lock(own, job.id), "warning", {})

    threads = [threading.Thread(target=write) for _ in range(WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with reading(factory) as reader:
        log = events.list_after(reader, job.id, limit=1000)
    assert [event.seq for event in log] == list(range(1, 2 + WRITERS * EVENTS + 1))


def test_a_rollback_leaves_no_hole(session, make_job: MakeJob, factory: SessionFactory) -> None:  # type: ignore[no-untyped-def]
    job = make_job()
    session.commit()
    own = factory()
    lost = events.append(own, jobs.lock(own, job.id), "warning", {"lost": True})
    assert lost.seq == 3
    own.rollback()
    own.close()
    with transaction(factory) as own:
        event = events.append(own, jobs.lock(own, job.id), "warning", {"lost": False})
    assert event.seq == 3


def test_reading_goes_on_behind_a_number(session, make_job: MakeJob) -> None:  # type: ignore[no-untyped-def]
    job = make_job()
    events.append(session, job, "warning", {"value": float("nan"), "text": "a\0b"})
    session.flush()
    session.expire_all()
    [event] = events.list_after(session, job.id, 2)
    assert (event.seq, event.data) == (3, {"value": None, "text": "a\ufffdb"})
