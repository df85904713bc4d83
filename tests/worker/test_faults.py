"""Faults one at a time, each at the point where it hurts most."""

import math
import os
import subprocess
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from registry import (
    blobs,
    checkpoints,
    commits,
    db,
    events,
    fsck,
    garbage,
    jobs,
    leases,
    metrics,
    outbox,
    retention,
    sweep,
)
from registry.db import SessionFactory, create_engine, reading, session_factory, transaction
from registry.migrate import migrate
from registry.queue import celery_app
from registry.settings import Settings
from registry.status import JobStatus
from registry.storage import LocalStore
from registry.sweeping import sweep_round
from registry.tables import Job
from tests.worker.conftest import Submit, run
from tests.worker.history import check_history
from tests.worker.increments import Crash, commit_next, crashing, lose, take
from tests.worker.test_runner import Look
from worker import publish
from worker.workplace import Workplace

# --- failpoints: the worker dies at a point between publishing and being done ---------------------


def before(owner: Any, name: str, nth: int = 1) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: _crash_at(patch, owner, name, nth, after=False)


def after(owner: Any, name: str) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: _crash_at(patch, owner, name, 1, after=True)


def _crash_at(patch: pytest.MonkeyPatch, owner: Any, name: str, nth: int, *, after: bool) -> None:
    function, calls = getattr(owner, name), [0]

    def crashing_there(*args: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] == nth and not after:
            raise Crash
        result = function(*args, **named)
        if calls[0] == nth:
            raise Crash
        return result

    patch.setattr(owner, name, crashing_there)


POINTS = {
    "before the first blob": before(LocalStore, "put_file"),
    "between two blobs": before(LocalStore, "put_file", nth=3),
    "before a blob gets its name": before(LocalStore, "_publish"),
    "after a blob got its name": after(LocalStore, "_publish"),
    "before the transaction": before(Workplace, "apply"),
    "before the guard": before(commits, "commit_increment"),
    "after the guard": after(commits, "guard"),
    "after the blobs' rows": after(blobs, "refer_to"),
    "after the checkpoint's rows": after(commits, "_add_checkpoint"),
    "after the head moved": after(commits, "_advance"),
    "after dropping what is old": after(retention, "apply"),
    "before the commit": after(commits, "commit_increment"),
    "after the commit": after(Workplace, "apply"),
}


@pytest.mark.parametrize("point", POINTS)
def test_a_worker_may_die_anywhere_between_publishing_and_its_commit(
    workplace: Workplace, submit: Submit, tmp_path: Path, point: str
) -> None:
    job_id = submit()
    lease = take(workplace, job_id)
    commit_next(workplace, lease, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        POINTS[point](patch)
        with crashing() as crashed:
            commit_next(workplace, lease, tmp_path)
    assert crashed == [True]
    lose(workplace, job_id)
    successor = take(workplace, job_id)
    while successor is not None:
        with reading(workplace.factory) as session:
            done = session.get_one(Job, job_id).increments_done
        checkpoint = commit_next(workplace, successor, tmp_path, final=done == 2)
        if checkpoint.final:
            break
    check_history(workplace.factory, workplace.store, job_id)
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    garbage.collect_orphans(workplace.factory, workplace.store, workplace.settings, tomorrow)
    report = fsck.check(workplace.factory, workplace.store)
    assert report.is_sound
    assert report.orphans == []


# --- collecting against committing ----------------------------------------------------------------


def test_collectors_at_full_speed_take_nothing_from_commits(
    workplace: Workplace, submit: Submit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The age floor is off: everything published is garbage until the moment of its commit."""
    # Without its age a file that is still being written cannot be told from one that was left.
    monkeypatch.setattr(LocalStore, "discard_partial", lambda *_: 0)
    greedy = workplace.settings.model_copy(update={"garbage_age_seconds": 0.0})
    job_id = submit()
    done = threading.Event()

    def collect() -> None:
        while not done.is_set():
            garbage.collect(workplace.factory, workplace.store)
            garbage.collect_orphans(workplace.factory, workplace.store, greedy)

    collectors = [threading.Thread(target=collect) for _ in range(2)]
    for collector in collectors:
        collector.start()
    committed = 0
    try:
        lease = take(workplace, job_id)
        for number in range(1, 9):
            for _ in range(50):
                try:
                    commit_next(workplace, lease, tmp_path, final=number == 8)
                except publish.BlobNotFound:
                    continue
                committed += 1
                break
    finally:
        done.set()
        for collector in collectors:
            collector.join()
    assert committed == 8
    assert fsck.check(workplace.factory, workplace.store).is_sound
    check_history(workplace.factory, workplace.store, job_id)


# --- several of what should be one ----------------------------------------------------------------


def test_sweepers_at_the_same_time_do_everything_once(
    workplace: Workplace, submit: Submit, factory: SessionFactory
) -> None:
    job_ids = [submit() for _ in range(5)]
    for job_id in job_ids:
        take(workplace, job_id)
    with transaction(factory) as session:
        for job_id in job_ids:
            job = session.get_one(Job, job_id)
            job.lease_until = job.created_at - timedelta(seconds=1)
    short = workplace.settings.model_copy(update={"lease_seconds": 0.001})
    queue = celery_app(short)
    threads = [threading.Thread(target=sweep_round, args=(factory, short, queue)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with reading(factory) as session:
        for job_id in job_ids:
            retries = [e for e in events.list_after(session, job_id) if e.type == "job.retrying"]
            assert len(retries) == 1
            assert session.get_one(Job, job_id).failures == 1


def test_a_user_who_cancels_while_the_job_ends_sees_one_end(
    workplace: Workplace, submit: Submit, tmp_path: Path, factory: SessionFactory
) -> None:
    for _ in range(5):
        job_id = submit(increments=1)
        lease = take(workplace, job_id)
        start = threading.Barrier(2)

        def cancel(job_id: str = job_id, start: threading.Barrier = start) -> None:
            start.wait()
            with transaction(factory) as session:
                job = commits.jobs.lock(session, job_id)
                if job.finished_at is None:
                    commits.jobs.request_cancel(session, job)

        user = threading.Thread(target=cancel)
        user.start()
        start.wait()
        try:
            commit_next(workplace, lease, tmp_path, final=True)
        except commits.CommitConflict:
            with transaction(factory) as session:
                leases.release(session, lease, cause="cancelled")
        user.join()
        check_history(factory, workplace.store, job_id)


def test_of_two_transactions_in_a_deadlock_the_one_that_was_ended_is_tried_again(
    workplace: Workplace, submit: Submit, factory: SessionFactory
) -> None:
    if workplace.settings.database_url.startswith("sqlite"):
        pytest.skip("one writer at a time cannot wait for another")
    job_ids = [submit(), submit()]
    both_hold_one = threading.Barrier(2)
    tries: list[str] = []

    def raise_priorities(order: list[str]) -> None:
        def write(session: Session) -> None:
            tries.append(order[0])
            jobs.lock(session, order[0]).priority += 1
            session.flush()
            if len(tries) <= 2:
                both_hold_one.wait()
            jobs.lock(session, order[1]).priority += 1

        workplace.apply(write)

    threads = [
        threading.Thread(target=raise_priorities, args=(order,))
        for order in (job_ids, job_ids[::-1])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(tries) == 3
    with reading(factory) as session:
        assert [session.get_one(Job, job_id).priority for job_id in job_ids] == [2, 2]


def test_sixteen_writers_at_the_same_time_all_have_their_turn(
    submit: Submit, factory: SessionFactory
) -> None:
    writers = [threading.Thread(target=lambda: [submit() for _ in range(4)]) for _ in range(16)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    with reading(factory) as session:
        assert session.query(Job).count() == session.query(outbox.OutboxMessage).count() == 64


# --- time -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("days", [-30, 30])
def test_a_worker_whose_clock_jumps_neither_loses_nor_steals(
    workplace: Workplace, submit: Submit, monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    if workplace.settings.database_url.startswith("sqlite"):
        pytest.skip("on one host there is one clock")
    job_id = submit()
    lease = take(workplace, job_id)

    class Jumped(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime.now(tz) + timedelta(days=days)

    monkeypatch.setattr(db, "datetime", Jumped)
    with transaction(workplace.factory) as session:
        leases.renew(session, lease)
        assert sweep.expire_leases(session, workplace.settings, db.database_now(session)) == 0
    with reading(workplace.factory) as session:
        until = session.get_one(Job, job_id).lease_until
        assert until is not None
        assert abs((until - datetime.now(UTC)).total_seconds()) < 60


# --- bad numbers ----------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_is_stored_as_none_and_ends_as_the_run_says(
    workplace: Workplace, submit: Submit, look: Look, factory: SessionFactory
) -> None:
    order = {"increment": 2, "how": "fail", "code": 78, "name": "numerics_diverged"}
    job_id = submit(misbehave=order, loss=math.nan)
    run(workplace, job_id)
    job = look(job_id)
    assert (job.status, job.increments_done) == (JobStatus.FAILED, 1)
    assert job.error is not None
    assert job.error["code"] == "numerics_diverged"
    with reading(factory) as session:
        assert set(metrics.columns(session, job_id, ("loss",))["loss"]) == {None}
        assert len(checkpoints.list_for_job(session, job_id)) == 1


def test_a_poison_job_does_not_hold_up_the_others(
    workplace: Workplace, submit: Submit, look: Look
) -> None:
    poison = submit(max_attempts=2, misbehave={"increment": 1, "how": "signal", "signal": 11})
    healthy = submit(increments=1)
    for _ in range(2):
        run(workplace, poison)
    run(workplace, healthy)
    assert look(poison).status is JobStatus.FAILED
    assert look(healthy).status is JobStatus.SUCCEEDED


# --- a full disk ----------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_database_on_a_full_disk_stays_whole(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk]
    if subprocess.run(command, check=False, capture_output=True).returncode != 0:
        pytest.skip("this container may not mount")
    settings = Settings(data_dir=tmp_path, database_url=f"sqlite:///{disk}/espalier.db")
    engine = create_engine(settings)
    try:
        migrate(settings)
        factory = session_factory(engine)
        with pytest.raises(OperationalError, match="full"):
            _fill(factory)
        with transaction(factory) as session:
            assert session.execute(text("PRAGMA integrity_check")).scalar_one() == "ok"
            whole = session.execute(text("SELECT count(*) FROM outbox")).scalar_one()
            assert whole % _ROWS == 0  # Whole transactions, or nothing of them.
    finally:
        engine.dispose()
        subprocess.run(["umount", disk], check=True)


_ROWS = 50


def _fill(factory: SessionFactory) -> None:
    while True:
        with transaction(factory) as session:
            for _ in range(_ROWS):
                now = datetime.now(UTC)
                session.add(
                    outbox.OutboxMessage(
                        id=outbox.new_id("msg"),
                        topic="t",
                        key="k",
                        payload={"filling": "x" * 1000},
                        available_at=now,
                        created_at=now,
                    )
                )
