"""Users, workers, zombies, sweepers and time in any order: the promises of a job always hold.

The real registry on both databases, under a clock that only the test moves.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, note
from hypothesis import settings as effort
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from registry import api_keys, checkpoints, commits, events, jobs, leases, outbox, sweep
from registry.db import SessionFactory, reading, transaction
from registry.errors import CommitConflict, InvalidTransition, LeaseLost
from registry.failures import Backoff, JobError
from registry.leases import Lease
from registry.settings import Settings
from registry.status import ACTIONS, LEASED, TERMINAL, TRANSITIONS, JobAction, JobStatus
from registry.tables import Job
from tests.registry.conftest import RECIPE, REQUEST
from tests.registry.test_commits import files_of, manifest_of, sha

LAST_INCREMENT = 4
LEASE_SECONDS = 60.0
BACKOFF = Backoff(base_seconds=15, limit_seconds=900)
TERMINAL_EVENTS = {"job.succeeded", "job.failed", "job.cancelled"}
ASKS: dict[JobAction, Callable[[Any, Job], None]] = {
    JobAction.CANCEL: jobs.request_cancel,
    JobAction.PAUSE: jobs.request_pause,
    JobAction.RESUME: jobs.resume,
    JobAction.RETRY: jobs.retry,
}
ALREADY = {
    JobAction.CANCEL: {JobStatus.CANCELLING, JobStatus.CANCELLED},
    JobAction.PAUSE: {JobStatus.PAUSING, JobStatus.PAUSED},
    JobAction.RESUME: {JobStatus.QUEUED},
    JobAction.RETRY: {JobStatus.QUEUED},
}
pick = st.integers(0, 99)


class Service(RuleBasedStateMachine):
    """Set `factory` and `settings` in a subclass."""

    factory: SessionFactory
    service_settings: Settings
    clock: list[datetime]

    def __init__(self) -> None:
        super().__init__()
        self.job_ids: list[str] = []
        self.leases: list[Lease] = []
        self.statuses: dict[str, JobStatus] = {}
        self.ends: dict[str, int] = {}

    # --- time and users ---------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([1, 20, 61, 1000]))
    def time_passes(self, seconds: int) -> None:
        self.clock[0] += timedelta(seconds=seconds)

    @precondition(lambda self: len(self.job_ids) < 3)
    @rule(deadline=st.sampled_from([None, None, 500.0]))
    def submit(self, deadline: float | None) -> None:
        with transaction(self.factory) as session:
            tenant = api_keys.get_or_create_tenant(session)
            job = jobs.create(
                session,
                tenant_id=tenant.id,
                recipe=RECIPE,
                spec=REQUEST,
                max_attempts=3,
                max_runtime_seconds=deadline,
            )
        self.job_ids.append(job.id)
        self.statuses[job.id] = job.status

    @precondition(lambda self: self.job_ids)
    @rule(which=pick, action=st.sampled_from(list(ASKS)))
    def a_user_asks(self, which: int, action: JobAction) -> None:
        job_id = self.job_ids[which % len(self.job_ids)]
        before = self.job(job_id).status
        legal = before in ACTIONS[action] or before in ALREADY[action]
        try:
            with transaction(self.factory) as session:
                ASKS[action](session, jobs.lock(session, job_id))
        except InvalidTransition:
            assert not legal
        else:
            assert legal

    # --- the service ------------------------------------------------------------------------------

    @rule()
    def a_sweeper_sweeps(self) -> None:
        with transaction(self.factory) as session:
            sweep.sweep(session, self.service_settings, self.clock[0])
        with transaction(self.factory) as session:
            outbox.relay(session, lambda _: None)

    @precondition(lambda self: self.job_ids)
    @rule(which=pick, owner=st.sampled_from(["a", "b"]))
    def a_worker_takes_a_hint(self, which: int, owner: str) -> None:
        job = self.job(self.job_ids[which % len(self.job_ids)])
        free = job.status is JobStatus.QUEUED and job.not_before <= self.clock[0]
        with transaction(self.factory) as session:
            lease = leases.acquire(session, job.id, owner, LEASE_SECONDS)
        assert (lease is not None) == free
        if lease is not None:
            assert lease.fence > job.fence
            self.leases.append(lease)

    # Whoever ever had a lease may wake up at any time and use it.

    @precondition(lambda self: self.leases)
    @rule(which=pick, ahead=st.sampled_from([1, 1, 1, 1, 0, 2]))
    def a_holder_commits(self, which: int, ahead: int) -> None:
        lease = self.leases[-1 - which % len(self.leases)]
        job = self.job(lease.job_id)
        increment = max(job.increments_done + ahead, 1)
        next_one = increment == job.increments_done + 1
        due = self.holds(lease) and next_one and job.status is not JobStatus.CANCELLING
        final = increment >= LAST_INCREMENT
        manifest = manifest_of(increment, final=final, num_parameters=2000 - increment)
        digest = sha(f"{lease.job_id}{lease.fence}{increment}{len(self.leases)}")
        try:
            with transaction(self.factory) as session:
                commits.commit_increment(session, lease, manifest, digest, files_of(increment))
        except CommitConflict:
            assert self.holds(lease)
            assert not due
        except LeaseLost:
            assert not self.holds(lease)
        else:
            assert due or ahead == 0  # What was committed already is answered again.

    @precondition(lambda self: self.leases)
    @rule(which=pick)
    def a_holder_renews(self, which: int) -> None:
        lease = self.leases[-1 - which % len(self.leases)]
        self.write(lease, lambda session: leases.renew(session, lease))

    @precondition(lambda self: self.leases)
    @rule(which=pick, pause=st.booleans())
    def a_holder_gives_back(self, which: int, pause: bool) -> None:
        lease = self.leases[-1 - which % len(self.leases)]
        self.write(lease, lambda s: leases.release(s, lease, cause="slice", pause=pause))

    @precondition(lambda self: self.leases)
    @rule(which=pick, retryable=st.booleans(), lost=st.booleans())
    def a_holder_fails(self, which: int, retryable: bool, lost: bool) -> None:
        lease = self.leases[-1 - which % len(self.leases)]
        error = JobError(code="internal", message="m", retryable=retryable)
        self.write(
            lease,
            lambda s: commits.fail(s, lease, error, cause="error", backoff=BACKOFF, lost=lost),
        )

    # --- promises ---------------------------------------------------------------------------------

    @invariant()
    def every_change_of_status_is_in_the_table(self) -> None:
        for job_id, before in self.statuses.items():
            after = self.job(job_id).status
            assert after is before or after in _reachable(before), (before, after)
            self.statuses[job_id] = after

    @invariant()
    def the_committed_line_is_one_line(self) -> None:
        for job_id in self.job_ids:
            with reading(self.factory) as session:
                job = session.get_one(Job, job_id)
                line = checkpoints.increments(session, job_id)
            parents = [None, *(increment.checkpoint_id for increment in line)]
            assert [i.idx for i in line] == list(range(1, len(line) + 1))
            assert [i.parent_checkpoint_id for i in line] == parents[:-1]
            assert [i.fence for i in line] == sorted(i.fence for i in line)
            assert (job.head_checkpoint_id, job.increments_done) == (parents[-1], len(line))

    @invariant()
    def events_tell_the_story(self) -> None:
        for job_id in self.job_ids:
            with reading(self.factory) as session:
                job = session.get_one(Job, job_id)
                log = events.list_after(session, job_id, limit=10_000)
            assert [event.seq for event in log] == list(range(1, len(log) + 1))
            told = [event for event in log if "status" in event.data]
            assert told[-1].data["status"] == job.status.value
            ends = sum(event.type in TERMINAL_EVENTS for event in log)
            retries = sum(
                event.type == "job.queued" and event.data.get("from") in TERMINAL for event in log
            )
            # One end, and one more for each time it was retried.
            assert ends == retries + (job.status in TERMINAL)

    @invariant()
    def only_a_leased_job_has_a_lease(self) -> None:
        for job_id in self.job_ids:
            job = self.job(job_id)
            assert (job.lease_owner is not None) == (job.status in LEASED)
            assert (job.finished_at is not None) == (job.status in TERMINAL)

    def teardown(self) -> None:
        """From wherever it stands, every job comes to an end."""
        for job_id in self.job_ids:
            for _ in range(10 * LAST_INCREMENT):
                job = self.job(job_id)
                if job.status in TERMINAL:
                    break
                self._help(job)
            assert self.job(job_id).status in TERMINAL

    def _help(self, job: Job) -> None:
        self.clock[0] += timedelta(seconds=LEASE_SECONDS + 1)
        with transaction(self.factory) as session:
            sweep.sweep(session, self.service_settings, self.clock[0])
        if self.job(job.id).status is JobStatus.PAUSED:
            with transaction(self.factory) as session:
                jobs.resume(session, jobs.lock(session, job.id))
        with transaction(self.factory) as session:
            lease = leases.acquire(session, job.id, "helper", LEASE_SECONDS)
        if lease is not None:
            self.leases.append(lease)
            self.a_holder_commits(which=0, ahead=1)

    # --- looking ----------------------------------------------------------------------------------

    def job(self, job_id: str) -> Job:
        with reading(self.factory) as session:
            return session.get_one(Job, job_id)

    def holds(self, lease: Lease) -> bool:
        job = self.job(lease.job_id)
        return job.fence == lease.fence and job.status in LEASED

    def write(self, lease: Lease, what: Callable[[Any], object]) -> None:
        held = self.holds(lease)
        try:
            with transaction(self.factory) as session:
                note(str(what(session)))
        except LeaseLost:
            assert not held
        else:
            assert held


def _reachable(status: JobStatus) -> set[JobStatus]:
    # One rule may take two steps: a retry that finds its deadline over, say.
    direct = TRANSITIONS[status]
    return set(direct).union(*(TRANSITIONS[following] for following in direct))


@contextmanager
def virtual_clock(start: datetime) -> Iterator[list[datetime]]:
    """The time of all registry functions, as a list of one; move it by writing to it."""
    clock = [start]
    users = [
        module
        for name, module in sys.modules.items()
        if name.startswith("registry.") and hasattr(module, "database_now")
    ]
    with pytest.MonkeyPatch.context() as patch:
        for module in users:
            patch.setattr(module, "database_now", lambda _session: clock[0])
        yield clock


def test_any_order_of_users_workers_and_time(factory: SessionFactory, settings: Settings) -> None:
    # Long after the start of the database server, whose restart would give everyone grace.
    with virtual_clock(datetime.now(UTC) + timedelta(days=1)) as clock:
        machine = type(
            "ServiceHere",
            (Service,),
            {"factory": factory, "service_settings": settings, "clock": clock},
        )
        run_state_machine_as_test(machine, settings=EFFORT)


EFFORT = effort(
    max_examples=15,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
