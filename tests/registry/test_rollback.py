"""A damaged head is cut off by the holder of the lease, and by nobody else."""

from datetime import timedelta

import pytest
from sqlalchemy.orm import Session

from registry import checkpoints, events, rollback, sweep
from registry.db import database_now
from registry.errors import LeaseLost
from registry.settings import Settings
from registry.tables import Evaluation
from tests.registry.conftest import MakeJob, take
from tests.registry.test_retention import commit


def test_the_job_stands_where_it_stood_before(session: Session, make_job: MakeJob) -> None:
    job = make_job()
    lease = take(session, job)
    first, second = (commit(session, lease, increment) for increment in (1, 2))
    earlier = rollback.reject_head(session, lease, "a byte is wrong")
    assert earlier is not None
    assert (earlier.increments_done, earlier.head_checkpoint_id) == (1, first.id)
    assert (job.increments_done, job.head_checkpoint_id) == (1, first.id)
    assert (job.params_now, job.tokens_seen) == (first.params, first.num_tokens)
    [*_, warning] = events.list_after(session, job.id)
    assert (warning.level, warning.data["checkpoint"]) == ("warning", second.id)


def test_the_lost_increment_is_committed_anew(session: Session, make_job: MakeJob) -> None:
    job = make_job()
    lease = take(session, job)
    for increment in (1, 2):
        commit(session, lease, increment, perplexity=12.0)
    rollback.reject_head(session, lease, "a byte is wrong")
    again = commit(session, lease, 2, perplexity=12.0, num_bytes=3000)
    assert [i.idx for i in checkpoints.increments(session, job.id)] == [1, 2]
    measured = session.query(Evaluation).filter_by(job_id=job.id, increment=2).all()
    assert [row.checkpoint_id for row in measured] == [again.id]


def test_the_first_checkpoint_has_none_before_it(session: Session, make_job: MakeJob) -> None:
    job = make_job()
    lease = take(session, job)
    commit(session, lease, 1)
    assert rollback.reject_head(session, lease, "a byte is wrong") is None
    assert job.increments_done == 1


def test_a_pinned_checkpoint_does_not_vanish(session: Session, make_job: MakeJob) -> None:
    lease = take(session, make_job())
    commit(session, lease, 1)
    commit(session, lease, 2).pinned = True
    assert rollback.reject_head(session, lease, "a byte is wrong") is None


def test_a_zombie_cuts_off_nothing(session: Session, settings: Settings, make_job: MakeJob) -> None:
    job = make_job()
    zombie = take(session, job)
    commit(session, zombie, 1)
    sweep.expire_leases(session, settings, database_now(session) + timedelta(hours=1))
    with pytest.raises(LeaseLost):
        rollback.reject_head(session, zombie, "a byte is wrong")
