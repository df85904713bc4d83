"""Every guard is needed: a directed check holds with it and breaks without it."""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, select

from registry import (
    commits,
    fsck,
    garbage,
    idempotency,
    jobs,
    leases,
    outbox,
    progress,
    storage,
    sweep,
)
from registry.db import database_now, reading, transaction
from registry.errors import (
    CommitConflict,
    IdempotencyInProgress,
    InvalidTransition,
    LeaseLost,
    RegistryError,
)
from registry.status import JobStatus
from registry.storage import LocalStore
from registry.tables import Blob, Checkpoint, CheckpointFile, Increment, Job
from tests.registry.conftest import RECIPE, REQUEST
from tests.registry.test_commits import files_of, manifest_of, sha
from tests.worker import increments
from tests.worker.conftest import Submit
from tests.worker.increments import Crash, commit_next, lose, take
from tests.worker.mutants import remove_guard
from worker import publish
from worker.workplace import Workplace


def _name(function: Callable[..., None]) -> str:
    return function.__name__


@dataclass(frozen=True)
class Stage:
    """What a check works on."""

    place: Workplace
    job_id: str
    directory: Path
    patch: pytest.MonkeyPatch


def line_of(stage: Stage) -> list[tuple[int, int]]:
    """Which increments are committed, and under which fence."""
    with reading(stage.place.factory) as session:
        query = select(Increment.idx, Increment.fence).order_by(Increment.idx)
        return [(idx, fence) for idx, fence in session.execute(query)]


# --- the checks -----------------------------------------------------------------------------------


def a_zombie_commits_nothing(stage: Stage) -> None:
    zombie = take(stage.place, stage.job_id, "zombie")
    lose(stage.place, stage.job_id)
    successor = take(stage.place, stage.job_id, "successor")
    with suppress(LeaseLost):
        commit_next(stage.place, zombie, stage.directory)
    with suppress(RegistryError):
        commit_next(stage.place, successor, stage.directory)
    assert line_of(stage) == [(1, successor.fence)]


def a_zombie_does_not_keep_the_lease(stage: Stage) -> None:
    zombie = take(stage.place, stage.job_id, "zombie")
    lose(stage.place, stage.job_id)
    take(stage.place, stage.job_id, "successor")
    with transaction(stage.place.factory) as session, pytest.raises(LeaseLost):
        leases.renew(session, zombie)


def increments_come_in_order(stage: Stage) -> None:
    lease = take(stage.place, stage.job_id)
    with suppress(CommitConflict), transaction(stage.place.factory) as session:
        commits.commit_increment(session, lease, manifest_of(3), sha("m"), files_of(3))
    assert line_of(stage) == []


def a_new_job_is_hinted(stage: Stage) -> None:
    with transaction(stage.place.factory) as session:
        outbox.relay(session, lambda _: None)
        tenant = session.get_one(Job, stage.job_id).tenant_id
        job = jobs.create(session, tenant_id=tenant, recipe=RECIPE, spec=REQUEST)
    hinted: list[str] = []
    with transaction(stage.place.factory) as session:
        outbox.relay(session, lambda message: hinted.append(message.key))
    assert hinted == [job.id]


def a_job_of_a_dead_worker_is_queued_again(stage: Stage) -> None:
    take(stage.place, stage.job_id, "dead")
    with transaction(stage.place.factory) as session:
        sweep.sweep(session, stage.place.settings, database_now(session) + timedelta(hours=1))
    with reading(stage.place.factory) as session:
        assert session.get_one(Job, stage.job_id).status is JobStatus.QUEUED


def a_forgotten_hint_is_given_again(stage: Stage) -> None:
    with transaction(stage.place.factory) as session:
        outbox.relay(session, lambda _: None)
    with transaction(stage.place.factory) as session:
        later = database_now(session) + timedelta(minutes=5)
        sweep.sweep(session, stage.place.settings, later)
    with transaction(stage.place.factory) as session:
        assert outbox.relay(session, lambda _: None) == 1


def no_row_names_bytes_that_are_not_there(stage: Stage) -> None:
    """The worker dies while it stores the second file."""
    store = stage.place.store
    put, stored = store.put_file, []

    def put_one(path: Path) -> Any:
        stored.append(path)
        if len(stored) > 1:
            raise Crash
        return put(path)

    stage.patch.setattr(store, "put_file", put_one)
    lease = take(stage.place, stage.job_id)
    with increments.crashing() as crashed:
        commit_next(stage.place, lease, stage.directory)
    assert crashed == [True]
    assert fsck.check(stage.place.factory, store).missing == []


def a_name_is_given_to_durable_bytes_only(stage: Stage) -> None:
    synced: set[int] = set()
    sync, replace = os.fsync, Path.replace

    def watching_sync(descriptor: int) -> None:
        sync(descriptor)
        synced.add(os.fstat(descriptor).st_ino)

    def watching_replace(self: Path, target: Path) -> Path:
        assert self.stat().st_ino in synced, "renamed before its bytes were durable"
        return replace(self, target)

    stage.patch.setattr(os, "fsync", watching_sync)
    stage.patch.setattr(Path, "replace", watching_replace)
    path = stage.directory / "file"
    path.write_bytes(b"bytes")
    store = LocalStore(stage.directory / "artifacts")
    final = store.path_of(store.put_file(path).sha256)
    # The name lasts as long as its directory does, and that as long as its own.
    assert {final.parent.stat().st_ino, final.parent.parent.stat().st_ino} <= synced


def holders_may_come_back_after_a_restart_of_the_database(stage: Stage) -> None:
    settings = stage.place.settings.model_copy(update={"lease_seconds": 10.0**6})
    take(stage.place, stage.job_id)
    with transaction(stage.place.factory) as session:
        later = database_now(session) + timedelta(hours=1)
        assert sweep.expire_leases(session, settings, later) == 0


def a_repeated_request_has_no_second_effect(stage: Stage) -> None:
    with reading(stage.place.factory) as session:
        tenant = session.get_one(Job, stage.job_id).tenant_id
    request = {"tenant_id": tenant, "key": "k", "fingerprint": "f"}
    with transaction(stage.place.factory) as session:
        assert idempotency.begin(session, **request) is None
    with transaction(stage.place.factory) as session, pytest.raises(IdempotencyInProgress):
        idempotency.begin(session, **request)


def the_end_is_the_end(stage: Stage) -> None:
    commit_next(stage.place, take(stage.place, stage.job_id), stage.directory, final=True)
    with suppress(InvalidTransition), transaction(stage.place.factory) as session:
        jobs.transition(session, jobs.lock(session, stage.job_id), JobStatus.CANCELLED)
    with reading(stage.place.factory) as session:
        assert session.get_one(Job, stage.job_id).status is JobStatus.SUCCEEDED


def a_collected_blob_is_stored_again(stage: Stage) -> None:
    """The collector takes a blob between its storing and the commit that names it."""
    store, factory = stage.place.store, stage.place.factory
    put = store.put_file
    collected: list[str] = []

    def put_and_lose(path: Path) -> Any:
        blob = put(path)
        if not collected:
            collected.append(blob.sha256)
            store.delete(blob.sha256)
        return blob

    stage.patch.setattr(store, "put_file", put_and_lose)
    commit_next(stage.place, take(stage.place, stage.job_id), stage.directory)
    assert fsck.check(factory, store).missing == []


def a_blob_named_meanwhile_stays(stage: Stage) -> None:
    """Chosen as unreferenced, then referred to by a commit, and only then locked and marked."""
    factory, store = stage.place.factory, stage.place.store
    checkpoint = commit_next(stage.place, take(stage.place, stage.job_id), stage.directory)
    path = stage.directory / "late"
    path.write_bytes(b"late")
    sha256 = store.put_file(path).sha256
    with transaction(factory) as session:
        session.add(
            Blob(sha256=sha256, size_bytes=4, status="stored", created_at=datetime.now(UTC))
        )
    named: list[bool] = []

    def name_it(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "EXISTS" in statement and not named:
            named.append(True)
            with transaction(factory) as other:
                other.add(
                    CheckpointFile(
                        checkpoint_id=checkpoint.id, path="late", sha256=sha256, size_bytes=4
                    )
                )

    event.listen(factory.kw["bind"], "after_cursor_execute", name_it)
    try:
        with transaction(factory) as session:
            garbage.mark(session)
    finally:
        event.remove(factory.kw["bind"], "after_cursor_execute", name_it)
    with reading(factory) as session:
        assert session.get_one(Blob, sha256).status == "stored"


# --- the guards -----------------------------------------------------------------------------------

Mutate = Callable[[pytest.MonkeyPatch], None]


def no_fence(patch: pytest.MonkeyPatch) -> None:
    remove_guard(patch, leases, "guard", "Job.fence == lease.fence, ", "", commits, progress)


def no_fence_in_the_heartbeat(patch: pytest.MonkeyPatch) -> None:
    remove_guard(patch, leases, "renew", "Job.fence == lease.fence, ", "")


def no_compare_and_swap(patch: pytest.MonkeyPatch) -> None:
    old = " or job.increments_done != manifest.increment - 1"
    remove_guard(patch, commits, "commit_increment", old, "", publish.commits)


def no_outbox_row(patch: pytest.MonkeyPatch) -> None:
    remove_guard(patch, jobs, "create", "outbox.hint(writer, job, now=now)", "pass")


def no_sweeper(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(sweep, "sweep", lambda *_: sweep.Swept())


def no_expiry(patch: pytest.MonkeyPatch) -> None:
    remove_guard(patch, sweep, "sweep", "expire_leases(session, settings, now)", "0")


def no_second_hint(patch: pytest.MonkeyPatch) -> None:
    remove_guard(patch, sweep, "sweep", "hint_queued(session, settings, now)", "0")


def publish_after_commit(patch: pytest.MonkeyPatch) -> None:
    def commit_then_store(
        place: Workplace, lease: Any, directory: Path, manifest: Any, expected: Any
    ) -> Checkpoint:
        files = [
            commits.PublishedFile(name, digest.sha256, digest.num_bytes)
            for name, digest in sorted(expected.items())
        ]
        sha256 = expected[publish.MANIFEST_NAME].sha256
        checkpoint = place.apply(
            lambda session: commits.commit_increment(session, lease, manifest, sha256, files)
        )
        for name in sorted(expected):
            place.store.put_file(directory / name)
        return checkpoint

    patch.setattr(publish, "_store_and_commit", commit_then_store)


def no_fsync_before_the_rename(patch: pytest.MonkeyPatch) -> None:
    old = "os.fsync(target.fileno())"
    remove_guard(patch, storage.LocalStore, "put_file", old, "pass")


def no_fsync_of_the_directory(patch: pytest.MonkeyPatch) -> None:
    old = "_sync_directory(final.parent)"
    remove_guard(patch, storage.LocalStore, "_publish", old, "pass")


def no_grace_after_a_restart(patch: pytest.MonkeyPatch) -> None:
    old = "_database_restarted_lately(session, settings, now)"
    remove_guard(patch, sweep, "expire_leases", old, "False")


def no_idempotency_row(patch: pytest.MonkeyPatch) -> None:
    old = "insert_unless_exists(session, IdempotencyKey, values)"
    remove_guard(patch, idempotency, "begin", old, "True")


def no_transition_table(patch: pytest.MonkeyPatch) -> None:
    old = "not may_become(job.status, status)"
    remove_guard(patch, jobs, "transition", old, "False")


def no_look_at_the_store_in_the_commit(patch: pytest.MonkeyPatch) -> None:
    old = "not workplace.store.exists(file.sha256)"
    remove_guard(patch, publish, "_store_and_commit", old, "False")


def no_second_look_before_marking(patch: pytest.MonkeyPatch) -> None:
    remove_guard(patch, garbage, "mark", "blob.sha256 not in used", "True")


CASES: list[tuple[Callable[[Stage], None], Mutate]] = [
    (a_zombie_commits_nothing, no_fence),
    (a_zombie_does_not_keep_the_lease, no_fence_in_the_heartbeat),
    (increments_come_in_order, no_compare_and_swap),
    (a_new_job_is_hinted, no_outbox_row),
    (a_job_of_a_dead_worker_is_queued_again, no_sweeper),
    (a_job_of_a_dead_worker_is_queued_again, no_expiry),
    (a_forgotten_hint_is_given_again, no_second_hint),
    (no_row_names_bytes_that_are_not_there, publish_after_commit),
    (a_name_is_given_to_durable_bytes_only, no_fsync_before_the_rename),
    (a_name_is_given_to_durable_bytes_only, no_fsync_of_the_directory),
    (holders_may_come_back_after_a_restart_of_the_database, no_grace_after_a_restart),
    (a_repeated_request_has_no_second_effect, no_idempotency_row),
    (the_end_is_the_end, no_transition_table),
    (a_collected_blob_is_stored_again, no_look_at_the_store_in_the_commit),
    (a_blob_named_meanwhile_stays, no_second_look_before_marking),
]
# SQLite has one writer at a time and no server that restarts.
ONLY_POSTGRES = (
    holders_may_come_back_after_a_restart_of_the_database,
    a_blob_named_meanwhile_stays,
)


@pytest.fixture
def stage(
    workplace: Workplace, submit: Submit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Stage:
    directory = tmp_path / "out"
    directory.mkdir()
    return Stage(workplace, submit(), directory, monkeypatch)


def _skip_if_pointless(stage: Stage, check: Callable[[Stage], None]) -> None:
    if check in ONLY_POSTGRES and stage.place.settings.database_url.startswith("sqlite"):
        pytest.skip("nothing to guard against on SQLite")


@pytest.mark.parametrize("check", dict.fromkeys(check for check, _ in CASES), ids=_name)
def test_the_guards_hold(stage: Stage, check: Callable[[Stage], None]) -> None:
    _skip_if_pointless(stage, check)
    check(stage)


@pytest.mark.parametrize(("check", "mutate"), CASES, ids=_name)
def test_a_check_notices_that_its_guard_is_gone(
    stage: Stage, check: Callable[[Stage], None], mutate: Mutate
) -> None:
    _skip_if_pointless(stage, check)
    mutate(stage.patch)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check(stage)
