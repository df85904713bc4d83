"""Storage is set aside when a job is created, and stored bytes come out of what was set aside."""

import threading

import pytest
from sqlalchemy.orm import Session

from registry import api_keys, commits, jobs, quotas
from registry.commits import PublishedFile
from registry.db import SessionFactory, transaction
from registry.errors import QuotaExceeded
from registry.quotas import Quotas
from registry.tables import Job, Tenant
from tests.registry.conftest import RECIPE, REQUEST, take
from tests.registry.test_commits import manifest_of


@pytest.fixture
def tenant(session: Session) -> Tenant:
    """One that may store 1000 bytes."""
    tenant = api_keys.get_or_create_tenant(session)
    quotas.set_quotas(tenant, Quotas(storage_bytes=1000))
    session.flush()
    return tenant


def create(session: Session, tenant_id: str, num_bytes: int) -> Job:
    quotas.check_job(session, tenant_id, storage_bytes=num_bytes)
    job = jobs.create(
        session, tenant_id=tenant_id, recipe=RECIPE, spec=REQUEST, reserved_bytes=num_bytes
    )
    return jobs.get(session, tenant_id, job.id)


def test_jobs_that_do_not_fit_together_are_refused_before_they_run(
    session: Session, tenant: Tenant
) -> None:
    create(session, tenant.id, 600)
    with pytest.raises(QuotaExceeded, match="600 set aside") as refused:
        create(session, tenant.id, 500)
    assert refused.value.code == "quota_storage"
    create(session, tenant.id, 400)


def test_what_a_job_stores_comes_out_of_what_was_set_aside_for_it(
    session: Session, tenant: Tenant
) -> None:
    job = create(session, tenant.id, 600)
    file = PublishedFile(path="model.safetensors", sha256="a" * 64, num_bytes=250)
    commits.commit_increment(session, take(session, job), manifest_of(1), "b" * 64, [file])
    assert quotas.storage_used(session, tenant.id) == 250
    assert quotas.storage_reserved(session, tenant.id) == 350


def test_a_job_that_is_over_sets_nothing_aside(session: Session, tenant: Tenant) -> None:
    job = create(session, tenant.id, 600)
    jobs.request_cancel(session, job)
    session.flush()
    assert quotas.storage_reserved(session, tenant.id) == 0
    create(session, tenant.id, 1000)


def test_of_jobs_created_at_the_same_time_no_more_are_taken_than_fit(
    factory: SessionFactory,
) -> None:
    with transaction(factory) as session:
        tenant = api_keys.get_or_create_tenant(session)
        quotas.set_quotas(tenant, Quotas(storage_bytes=1000))
        tenant_id = tenant.id
    start = threading.Barrier(4)
    refused = []

    def submit() -> None:
        start.wait()
        try:
            with transaction(factory) as session:
                create(session, tenant_id, 500)
        except QuotaExceeded as error:
            refused.append(error)

    users = [threading.Thread(target=submit) for _ in range(4)]
    for user in users:
        user.start()
    for user in users:
        user.join()
    assert len(refused) == 2
