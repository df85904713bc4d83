"""What a job keeps of its checkpoints, and what becomes of the bytes of the rest."""

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select
from sqlalchemy.orm import Session

from registry import api_keys, checkpoints, commits, garbage, jobs, retention
from registry.commits import PublishedFile
from registry.db import SessionFactory, transaction
from registry.errors import BlobNotFound
from registry.leases import Lease
from registry.settings import Settings
from registry.storage import LocalStore
from registry.tables import Blob, Checkpoint, Job
from tests.registry.conftest import RECIPE, REQUEST, MakeJob, take
from tests.registry.test_commits import manifest_of, sha

NAMES = ("config.json", "manifest.json", "model.safetensors", "training_state/state.safetensors")


def commit(
    session: Session, lease: Lease, increment: int, *, perplexity: float = 12.5, **changes: Any
) -> Checkpoint:
    """Commit an increment of four files, only named and nowhere stored."""
    manifest = manifest_of(increment, **changes)
    measured = manifest.measurements[0].model_copy(update={"value": perplexity})
    manifest = manifest.model_copy(update={"measurements": (measured,)})
    files = [PublishedFile(name, sha(f"{increment}{name}"), 10) for name in NAMES]
    return commits.commit_increment(session, lease, manifest, sha(f"m{increment}"), files)


def kept(session: Session, job: Job) -> dict[int, str]:
    """Per increment: everything, only weights, or only the manifest."""
    words = {4: "all", 3: "weights", 1: "manifest"}
    return {
        c.increment: words[len(checkpoints.files(session, c.id))]
        for c in checkpoints.list_for_job(session, job.id)
    }


def keep(job: Job, what: str) -> None:
    job.recipe = {**job.recipe, "output": {"dtype": "bfloat16", "keep": what}}


@pytest.mark.parametrize(
    ("what", "under_way", "in_the_end"),
    [
        (
            "final",
            {1: "manifest", 2: "all", 3: "all"},
            {1: "manifest", 2: "manifest", 3: "manifest", 4: "weights"},
        ),
        (
            "frontier",
            {1: "weights", 2: "all", 3: "all"},
            {1: "weights", 2: "manifest", 3: "weights", 4: "weights"},
        ),
        ("all", {1: "all", 2: "all", 3: "all"}, {1: "all", 2: "all", 3: "all", 4: "all"}),
    ],
)
def test_what_is_kept_while_a_job_runs_and_when_it_is_done(
    session: Session,
    make_job: MakeJob,
    what: str,
    under_way: dict[int, str],
    in_the_end: dict[int, str],
) -> None:
    job = make_job()
    keep(job, what)
    lease = take(session, job)
    # The second is larger than the third, and worse.
    for increment, perplexity in ((1, 10.0), (2, 13.0), (3, 12.0)):
        commit(session, lease, increment, perplexity=perplexity)
    assert kept(session, job) == under_way
    commit(session, lease, 4, perplexity=14.0, final=True)
    assert kept(session, job) == in_the_end


def test_only_what_can_be_resumed_says_so(session: Session, make_job: MakeJob) -> None:
    job = make_job()
    lease = take(session, job)
    for increment in (1, 2, 3):
        commit(session, lease, increment)
    rows = checkpoints.list_for_job(session, job.id)
    assert [row.resumable for row in rows] == [False, True, True]


def test_a_pinned_checkpoint_loses_nothing(session: Session, make_job: MakeJob) -> None:
    job = make_job()
    keep(job, "final")
    lease = take(session, job)
    commit(session, lease, 1).pinned = True
    for increment in (2, 3):
        commit(session, lease, increment, final=increment == 3)
    assert kept(session, job) == {1: "all", 2: "manifest", 3: "weights"}
    jobs.delete(session, job)
    session.flush()
    assert retention.apply_to_deleted(session) == 1
    assert kept(session, job) == {1: "all", 2: "manifest", 3: "manifest"}


def test_a_failed_job_keeps_what_a_retry_needs(session: Session, make_job: MakeJob) -> None:
    job = make_job()
    lease = take(session, job)
    for increment in (1, 2):
        commit(session, lease, increment)
    jobs.request_cancel(session, job)
    retention.apply(session, job)
    assert kept(session, job) == {1: "all", 2: "all"}


@given(
    st.dictionaries(st.text(max_size=3), st.tuples(st.integers(0, 9), st.floats(1, 9)), min_size=1)
)
def test_the_frontier_beats_all_others(points: dict[str, tuple[int, float]]) -> None:
    best = retention.frontier(points)
    assert best
    for name, (size, loss) in points.items():
        beaten = any(
            points[b][0] <= size and points[b][1] <= loss and points[b] != points[name]
            for b in best
        )
        assert beaten == (name not in best)


# --- collecting -----------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "artifacts")


class Publisher:
    """A worker in small: stores files and commits them as increments of one job."""

    def __init__(self, factory: SessionFactory, store: LocalStore, directory: Path) -> None:
        self.factory, self.store, self.directory = factory, store, directory
        with transaction(factory) as session:
            tenant = api_keys.get_or_create_tenant(session)
            job = jobs.create(session, tenant_id=tenant.id, recipe=RECIPE, spec=REQUEST)
            self.job_id = job.id
            self.lease = take(session, jobs.get(session, tenant.id, job.id))

    def store_file(self, name: str, content: str) -> PublishedFile:
        path = self.directory / sha(content)
        path.write_text(content)
        blob = self.store.put_file(path)
        return PublishedFile(name, blob.sha256, blob.num_bytes)

    def store_increment(self, increment: int) -> list[PublishedFile]:
        return [self.store_file(name, f"{increment} {name}") for name in NAMES]

    def commit(self, increment: int, files: list[PublishedFile], *, final: bool = False) -> None:
        manifest = manifest_of(increment, final=final)
        with transaction(self.factory) as session:
            commits.commit_increment(session, self.lease, manifest, sha(f"m{increment}"), files)

    def stored(self) -> set[str]:
        return {entry.sha256 for entry in self.store.entries()}


@pytest.fixture
def publisher(factory: SessionFactory, store: LocalStore, tmp_path: Path) -> Publisher:
    return Publisher(factory, store, tmp_path)


def test_what_was_dropped_is_deleted_and_the_rest_stays(
    publisher: Publisher, factory: SessionFactory, store: LocalStore
) -> None:
    files = [publisher.store_increment(i) for i in (1, 2, 3)]
    for increment, its_files in enumerate(files, start=1):
        publisher.commit(increment, its_files, final=increment == 3)
    collected = garbage.collect(factory, store)
    # As good as the last and larger: of the others only the manifests stay.
    kept = {file.sha256 for file in files[2] if not file.path.startswith("training_state")}
    kept |= {f.sha256 for its in files for f in its if f.path == "manifest.json"}
    assert publisher.stored() == kept
    assert collected.blobs == 7
    assert not garbage.collect(factory, store)


def test_bytes_never_committed_go_when_they_are_old(
    publisher: Publisher, factory: SessionFactory, store: LocalStore, settings: Settings
) -> None:
    committed = publisher.store_increment(1)
    publisher.commit(1, committed)
    orphan = publisher.store_file("model.safetensors", "orphan")
    half = store.root / "tmp" / "half"
    half.write_text("half a file")
    assert not garbage.collect_orphans(factory, store, settings)
    assert orphan.sha256 in publisher.stored()
    later = datetime.now(UTC) + timedelta(hours=2)
    collected = garbage.collect_orphans(factory, store, settings, later)
    assert (collected.orphans, collected.temporary) == (1, 1)
    assert publisher.stored() == {file.sha256 for file in committed}
    assert not half.exists()


def test_a_collector_that_died_is_finished_by_the_next(
    publisher: Publisher, factory: SessionFactory, store: LocalStore
) -> None:
    lost = publisher.store_file("model.safetensors", "lost")
    with transaction(factory) as session:
        session.add(
            Blob(sha256=lost.sha256, size_bytes=4, status="deleting", created_at=datetime.now(UTC))
        )
    assert garbage.collect(factory, store).blobs == 1
    assert not store.exists(lost.sha256)


def test_a_commit_that_came_first_keeps_its_blobs(
    publisher: Publisher, factory: SessionFactory, store: LocalStore
) -> None:
    """The collector has chosen a blob; a commit refers to it before it can be marked."""
    files = publisher.store_increment(1)
    with transaction(factory) as session:
        for file in files:
            session.add(
                Blob(
                    sha256=file.sha256, size_bytes=4, status="stored", created_at=datetime.now(UTC)
                )
            )
    collected: list[int] = []
    with transaction(factory) as session:
        commits.commit_increment(session, publisher.lease, manifest_of(1), sha("m1"), files)
        collector = threading.Thread(
            target=lambda: collected.append(garbage.collect(factory, store).blobs)
        )
        collector.start()
        collector.join(0.2)
    collector.join(20)
    assert collected == [0]
    assert publisher.stored() == {file.sha256 for file in files}


def test_a_commit_that_came_second_is_told_to_store_again(
    publisher: Publisher, factory: SessionFactory, store: LocalStore
) -> None:
    files = publisher.store_increment(1)
    with transaction(factory) as session:
        session.add(
            Blob(
                sha256=files[0].sha256,
                size_bytes=4,
                status="stored",
                created_at=datetime.now(UTC),
            )
        )
        session.flush()
        assert garbage.mark(session) == 1
    with pytest.raises(BlobNotFound):
        publisher.commit(1, files)
    garbage.delete_marked(factory, store)
    publisher.commit(1, publisher.store_increment(1))
    with transaction(factory) as session:
        assert set(session.scalars(select(Blob.status))) == {"stored"}
    assert publisher.stored() == {file.sha256 for file in files}
