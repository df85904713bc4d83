"""Jobs: every transition of the table and none beside it, and lists that stand still."""

from itertools import product

import pytest
from sqlalchemy.orm import Session

from registry import events, job_rows, jobs
from registry.db import SessionFactory, transaction
from registry.errors import InvalidCursor, InvalidTransition, NotFound
from registry.job_rows import JobFilter
from registry.status import (
    ACTIONS,
    LEASED,
    TERMINAL,
    JobAction,
    JobStatus,
    allowed_actions,
    may_become,
)
from registry.tables import Tenant
from tests.registry.conftest import RECIPE, REQUEST, MakeJob, take

PAIRS = list(product(JobStatus, JobStatus))
ALLOWED = [pair for pair in PAIRS if may_become(*pair)]
FORBIDDEN = [pair for pair in PAIRS if not may_become(*pair)]
ASK = {
    JobAction.CANCEL: jobs.request_cancel,
    JobAction.PAUSE: jobs.request_pause,
    JobAction.RESUME: jobs.resume,
    JobAction.RETRY: jobs.retry,
    JobAction.DELETE: jobs.delete,
}
# A request that found its wish fulfilled is repeated harmlessly.
FULFILLED = {
    JobAction.CANCEL: {JobStatus.CANCELLING, JobStatus.CANCELLED},
    JobAction.PAUSE: {JobStatus.PAUSING, JobStatus.PAUSED},
    JobAction.RESUME: {JobStatus.QUEUED},
    JobAction.RETRY: {JobStatus.QUEUED},
    JobAction.DELETE: set(),
}


@pytest.mark.parametrize(("before", "after"), ALLOWED)
def test_an_allowed_transition_happens_with_its_event(
    session: Session, make_job: MakeJob, before: JobStatus, after: JobStatus
) -> None:
    job = make_job(before)
    version, seq = job.version, job.last_event_seq
    if after is JobStatus.RUNNING:
        take(session, job)
    else:
        jobs.transition(session, job, after)
    session.flush()
    assert (job.status, job.version) == (after, version + 1)
    [event] = events.list_after(session, job.id, seq)
    assert event.data["from"] == before
    assert (job.lease_owner is not None) == (after in LEASED)
    assert (job.finished_at is not None) == (after in TERMINAL)


@pytest.mark.parametrize(("before", "after"), FORBIDDEN)
def test_a_forbidden_transition_changes_nothing(
    session: Session, make_job: MakeJob, before: JobStatus, after: JobStatus
) -> None:
    job = make_job(before)
    seq = job.last_event_seq
    with pytest.raises(InvalidTransition) as caught:
        jobs.transition(session, job, after)
    assert caught.value.allowed_actions == allowed_actions(before)
    assert job.status is before
    assert not events.list_after(session, job.id, seq)


@pytest.mark.parametrize(("action", "status"), list(product(JobAction, JobStatus)))
def test_a_user_may_ask_for_what_the_table_says(
    session: Session, make_job: MakeJob, action: JobAction, status: JobStatus
) -> None:
    job = make_job(status)
    if status in ACTIONS[action] or status in FULFILLED[action]:
        ASK[action](session, job)
        seq = job.last_event_seq
        if action is not JobAction.DELETE:
            ASK[action](session, job)
        assert job.last_event_seq == seq
    else:
        with pytest.raises(InvalidTransition):
            ASK[action](session, job)
        assert job.status is status


def test_pausing_at_the_latest_checkpoint_needs_one(session: Session, make_job: MakeJob) -> None:
    job = make_job(JobStatus.RUNNING)
    with pytest.raises(InvalidTransition, match="start over"):
        jobs.request_pause(session, job, "latest")


def test_a_retry_forgets_the_failures(session: Session, make_job: MakeJob) -> None:
    job = make_job(JobStatus.FAILED, max_runtime_seconds=60)
    job.failures, job.error = 3, {"code": "internal"}
    before = job.deadline_at
    jobs.retry(session, job)
    assert (job.failures, job.error, job.finished_at) == (0, None, None)
    assert job.deadline_at is not None
    assert before is not None
    assert job.deadline_at > before


def test_another_tenant_s_job_does_not_exist(session: Session, make_job: MakeJob) -> None:
    job = make_job()
    with pytest.raises(NotFound):
        jobs.get(session, "ten_other", job.id)


def test_pages_hold_every_job_once_while_new_ones_come(
    factory: SessionFactory, tenant: Tenant, session: Session
) -> None:
    session.commit()
    created = []
    for _ in range(7):
        created.append(_create(factory, tenant.id))
    seen: list[str] = []
    after = None
    while True:
        with transaction(factory) as reader:
            page = job_rows.list_page(reader, tenant.id, limit=3, after=after)
        seen += [job.id for job in page.items]
        _create(factory, tenant.id)
        if not page.has_more:
            break
        after = seen[-1]
    assert seen == created[::-1]


def _create(factory: SessionFactory, tenant_id: str) -> str:
    with transaction(factory) as session:
        return jobs.create(session, tenant_id=tenant_id, recipe=RECIPE, spec=REQUEST).id


def test_a_page_can_be_filtered(session: Session, make_job: MakeJob, tenant: Tenant) -> None:
    make_job()
    wanted = make_job(JobStatus.RUNNING, name="50% smaller", metadata={"team": "nlp"})
    where = JobFilter(
        statuses=[JobStatus.RUNNING],
        model="org/model",
        name_contains="0%",
        metadata={"team": "nlp"},
        created_after=wanted.created_at.replace(year=2000),
    )
    page = job_rows.list_page(session, tenant.id, where=where)
    assert [job.id for job in page.items] == [wanted.id]


def test_a_cursor_of_another_tenant_is_refused(session: Session, make_job: MakeJob) -> None:
    job = make_job()
    with pytest.raises(InvalidCursor):
        job_rows.list_page(session, "ten_other", after=job.id)
