"""A Postgres from which nothing arrives any more, though nobody hangs up."""

import threading
from collections.abc import Iterator

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from registry import sweep
from registry.db import SessionFactory, transaction
from registry.settings import Settings
from registry.status import JobStatus
from tests.conftest import empty
from tests.worker.blackhole import Proxy, proxied
from tests.worker.conftest import Submit, run
from tests.worker.history import check_history
from tests.worker.processes import wait_until
from tests.worker.test_runner import Look, attempts
from worker.workplace import Workplace, open_workplace


@pytest.fixture
def database_url(postgres_database: str) -> Iterator[str]:
    """A database of its own kind; the tests that share it leave it empty."""
    yield postgres_database
    empty(postgres_database)


@pytest.fixture
def remote(settings: Settings) -> Iterator[tuple[Workplace, Proxy]]:
    """A worker on the other side of a proxy; it gives up on an answer after a second."""
    with proxied(settings.database_url) as (url, proxy):
        changes = {"database_url": url, "database_answer_seconds": 1.0, "lease_seconds": 3.0}
        place = open_workplace(settings.model_copy(update=changes))
        yield place, proxy
        place.factory.kw["bind"].dispose()


def test_a_silent_database_is_given_up(remote: tuple[Workplace, Proxy]) -> None:
    place, proxy = remote
    with place.factory() as session:
        session.execute(text("SELECT 1"))
        proxy.dark = True
        with pytest.raises(OperationalError, match="did not answer"):
            session.execute(text("SELECT 2"))
    proxy.dark = False
    with transaction(place.factory) as session:
        assert session.execute(text("SELECT 3")).scalar_one() == 3


def test_a_worker_that_was_cut_off_for_longer_than_its_lease_commits_nothing_and_goes_on(
    remote: tuple[Workplace, Proxy], submit: Submit, look: Look, factory: SessionFactory
) -> None:
    place, proxy = remote
    job_id = submit(increments=4, step_seconds=0.2)
    threads_before = threading.active_count()
    slice_ = threading.Thread(target=run, args=(place, job_id))
    slice_.start()
    wait_until(lambda: look(job_id).increments_done >= 1)
    proxy.dark = True
    # The sweeper stands on the database's side and sees a lease that nobody renews.
    wait_until(lambda: _swept(factory, place.settings))
    done = look(job_id).increments_done
    proxy.dark = False
    slice_.join()
    assert threading.active_count() == threads_before
    assert (look(job_id).status, look(job_id).increments_done) == (JobStatus.QUEUED, done)
    assert run(place, job_id)
    assert look(job_id).status is JobStatus.SUCCEEDED
    assert [a.end_cause for a in attempts(factory, job_id)] == ["lease_expired", "finished"]
    check_history(factory, place.store, job_id)


def _swept(factory: SessionFactory, settings: Settings) -> int:
    with transaction(factory) as session:
        return sweep.sweep(session, settings).expired
