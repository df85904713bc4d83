"""Jobs to try the registry on."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from pruning.recipe import Recipe
from registry import api_keys, jobs, leases
from registry.leases import Lease
from registry.settings import Settings
from registry.status import JobStatus
from registry.tables import Job, Tenant
from tests.conftest import new_postgres_database

REQUEST = {"model": "org/model", "target": "30%", "data": "org/text"}
RECIPE = Recipe.model_validate(REQUEST)

MakeJob = Callable[..., Job]


@pytest.fixture(params=["sqlite", "postgres"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Settings]:
    """Settings for a database without a table."""
    if request.param == "sqlite":
        yield Settings(data_dir=tmp_path)
        return
    with new_postgres_database(request.getfixturevalue("postgres_url")) as url:
        yield Settings(data_dir=tmp_path, database_url=url)


@pytest.fixture
def tenant(session: Session) -> Tenant:
    return api_keys.get_or_create_tenant(session)


@pytest.fixture
def make_job(session: Session, tenant: Tenant) -> MakeJob:
    """A job in the status asked for, reached by the ways that users and workers have."""

    def make(status: JobStatus = JobStatus.QUEUED, **named: object) -> Job:
        created = jobs.create(session, tenant_id=tenant.id, recipe=RECIPE, spec=REQUEST, **named)  # type: ignore[arg-type]
        job = jobs.get(session, tenant.id, created.id)
        for following in _WAYS[status]:
            if following is JobStatus.RUNNING:
                take(session, job)
            else:
                jobs.transition(session, job, following)
        return job

    return make


_WAYS: dict[JobStatus, tuple[JobStatus, ...]] = {
    JobStatus.QUEUED: (),
    JobStatus.RUNNING: (JobStatus.RUNNING,),
    JobStatus.PAUSING: (JobStatus.RUNNING, JobStatus.PAUSING),
    JobStatus.PAUSED: (JobStatus.PAUSED,),
    JobStatus.CANCELLING: (JobStatus.RUNNING, JobStatus.CANCELLING),
    JobStatus.SUCCEEDED: (JobStatus.RUNNING, JobStatus.SUCCEEDED),
    JobStatus.FAILED: (JobStatus.FAILED,),
    JobStatus.CANCELLED: (JobStatus.CANCELLED,),
}


def take(session: Session, job: Job, owner: str = "worker-1") -> Lease:
    """The lease of a queued job."""
    lease = leases.acquire(session, job.id, owner, 60)
    assert lease is not None
    return lease
