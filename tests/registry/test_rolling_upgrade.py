"""Two releases at once: the database is upgraded first, the processes one after the other."""

from datetime import timedelta
from pathlib import Path

from sqlalchemy import Engine, select

from registry import events, jobs, sweep
from registry.db import create_engine, database_now, session_factory, transaction
from registry.migrate import migrate
from registry.settings import Settings
from registry.status import JobStatus
from registry.tables import Job
from tests.registry import release
from tests.worker.history import TERMINAL_EVENTS
from tests.worker.increments import commit_next, take
from worker.workplace import open_workplace


def test_the_release_before_still_works_on_the_newest_schema(engine: Engine) -> None:
    _, statements = release.load(engine.dialect.name)
    with engine.begin() as connection:
        release.replay(connection, statements)
    with transaction(session_factory(engine)) as session:
        statuses = [job.status for job in session.scalars(select(Job).order_by(Job.id))]
    assert statuses == [JobStatus.PAUSED, JobStatus.QUEUED, JobStatus.SUCCEEDED]


def test_jobs_of_the_release_before_go_on_after_the_upgrade(
    empty: Settings, tmp_path: Path
) -> None:
    engine = create_engine(empty)
    revision, statements = release.load(engine.dialect.name)
    migrate(empty, revision)
    with engine.begin() as connection:
        release.replay(connection, statements)
    migrate(empty)
    place = open_workplace(empty.model_copy(update={"storage_reserve_bytes": 0}))
    with transaction(place.factory) as session:
        paused = session.scalars(select(Job).where(Job.status == JobStatus.PAUSED)).one()
        jobs.resume(session, jobs.lock(session, paused.id))
        session.flush()
        later = database_now(session) + timedelta(minutes=1)
        assert sweep.sweep(session, place.settings, later).hinted == 2
    lease = take(place, paused.id)
    assert lease.increments_done == 1
    commit_next(place, lease, tmp_path / "out")
    commit_next(place, lease, tmp_path / "out", final=True)
    with transaction(place.factory) as session:
        job = session.get_one(Job, paused.id)
        assert (job.status, job.increments_done) == (JobStatus.SUCCEEDED, 3)
        log = events.list_after(session, paused.id)
        assert [e.seq for e in log] == list(range(1, len(log) + 1))
        assert len([e for e in log if e.type in TERMINAL_EVENTS]) == 1
    place.factory.kw["bind"].dispose()
    engine.dispose()
