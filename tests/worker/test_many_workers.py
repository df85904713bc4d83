"""Three workers on one machine, as real processes: none idles, all serve whom they should."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from registry import api_keys
from registry.db import SessionFactory, transaction
from registry.settings import Settings
from registry.status import JobStatus
from registry.storage import store_for
from registry.tables import Job, JobAttempt, Tenant
from tests.worker.conftest import STAND_IN, submit_stand_in
from tests.worker.history import check_history
from tests.worker.processes import SWEEPER, WORKER, Processes, kill, wait_until

NUM_WORKERS = 3
SLOW = {"step_seconds": 0.15}


@pytest.fixture
def settings(tmp_path: Path, sqlite_template: Path) -> Settings:
    """One database file and one directory of messages for all."""
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    (data_dir / "espalier.db").write_bytes(sqlite_template.read_bytes())
    return Settings(
        data_dir=data_dir,
        child_command=STAND_IN,
        lease_seconds=3.0,
        rehint_seconds=0.5,
        backoff_seconds=0.0,
        storage_reserve_bytes=0,
        park_child=False,
    )


@pytest.fixture
def service(settings: Settings, tmp_path: Path) -> Iterator[Processes]:
    log_dir = tmp_path / "logs"
    log_dir.mkdir()
    with Processes(settings, log_dir) as processes:
        processes.start(SWEEPER)
        yield processes


def owners(factory: SessionFactory, job_id: str) -> list[str]:
    with transaction(factory) as session:
        rows = session.query(JobAttempt).filter_by(job_id=job_id).order_by(JobAttempt.fence)
        return [row.worker_id for row in rows]


def causes(factory: SessionFactory, job_id: str) -> list[str | None]:
    with transaction(factory) as session:
        rows = session.query(JobAttempt).filter_by(job_id=job_id).order_by(JobAttempt.fence)
        return [row.end_cause for row in rows]


def all_ended(factory: SessionFactory) -> bool:
    with transaction(factory) as session:
        return session.query(Job).filter(Job.finished_at.is_(None)).count() == 0


def test_three_workers_share_the_jobs_of_two_tenants_and_survive_one_of_them(
    service: Processes, settings: Settings, factory: SessionFactory, tenant: Tenant
) -> None:
    with transaction(factory) as session:
        other = api_keys.get_or_create_tenant(session, "other").id
    many = [submit_stand_in(factory, tenant.id, 4, 4, SLOW) for _ in range(4)]
    few = submit_stand_in(factory, other, 4, 4, SLOW)
    job_ids = [*many, few]
    workers = [service.start(WORKER) for _ in range(NUM_WORKERS)]
    # The one job of the other tenant does not wait for the four that were there before it.
    wait_until(lambda: owners(factory, few))
    assert not all(owners(factory, job_id) for job_id in many)
    wait_until(lambda: len({o for j in job_ids for o in owners(factory, j)}) == NUM_WORKERS)
    kill(workers[0])
    wait_until(lambda: all_ended(factory))
    for job_id in job_ids:
        check_history(factory, store_for(settings.artifacts_url), job_id)
    ended = {cause for job_id in job_ids for cause in causes(factory, job_id)}
    assert ended <= {"finished", "lease_expired"}


def test_a_job_of_higher_priority_takes_the_place_of_one_when_all_workers_are_busy(
    service: Processes,
    settings: Settings,
    factory: SessionFactory,
    tenant: Tenant,
    look: Callable[[str], Job],
) -> None:
    running = [submit_stand_in(factory, tenant.id, 8, 4, SLOW) for _ in range(NUM_WORKERS)]
    for _ in range(NUM_WORKERS):
        service.start(WORKER)
    wait_until(lambda: all(look(j).status is JobStatus.RUNNING for j in running))
    urgent = submit_stand_in(factory, tenant.id, 1, 4, {}, priority=10)
    wait_until(lambda: look(urgent).finished_at)
    assert look(urgent).status is JobStatus.SUCCEEDED
    preempted = [j for j in running if "preempted" in causes(factory, j)]
    assert len(preempted) == 1
    wait_until(lambda: all_ended(factory))
    for job_id in (*running, urgent):
        assert look(job_id).failures == 0
        check_history(factory, store_for(settings.artifacts_url), job_id)
