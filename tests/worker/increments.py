"""Increments without a child: directories as it leaves them, for what happens after it."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from pruning.events import IncrementFinished
from pruning.manifest import Lineage, digest_file, write_manifest
from registry import leases, sweep
from registry.db import database_now, transaction
from registry.leases import Lease
from registry.status import JobStatus
from registry.tables import Checkpoint, Job
from tests.registry.test_commits import manifest_of
from worker.publish import publish
from worker.workplace import Workplace

NAMES = ("config.json", "model.safetensors", "training_state/state.json")


class Crash(BaseException):
    """The end of a process, as far as code can see: nothing that tidies up catches it."""


def take(place: Workplace, job_id: str, owner: str = "w") -> Lease:
    """The lease of a queued job."""
    with transaction(place.factory) as session:
        lease = leases.acquire(session, job_id, owner, place.settings.lease_seconds)
    assert lease is not None
    return lease


def lose(place: Workplace, job_id: str) -> None:
    """Let the lease of a job run out, however long it is, and the sweeper see it."""
    with transaction(place.factory) as session:
        later = database_now(session) + timedelta(hours=1)
        sweep.expire_leases(session, place.settings, later)
    with transaction(place.factory) as session:
        job = session.get_one(Job, job_id)
        assert job.status is JobStatus.QUEUED
        job.not_before = database_now(session)


def write_increment(
    out_dir: Path, increment: int, *, parent_sha256: str | None = None, final: bool = False
) -> IncrementFinished:
    """A directory with random content, and the event that announces it."""
    name = f"increment-{secrets.token_hex(4)}"
    directory = out_dir / name
    (directory / "training_state").mkdir(parents=True)
    for file in NAMES:
        (directory / file).write_bytes(secrets.token_bytes(64))
    manifest = manifest_of(
        increment,
        final=final,
        lineage=Lineage(model="m", model_revision=None, parent_manifest_sha256=parent_sha256),
        files={file: digest_file(directory / file) for file in NAMES},
    )
    return IncrementFinished(
        increment=increment,
        step=manifest.step,
        num_tokens=manifest.num_tokens,
        num_parameters=manifest.num_parameters,
        directory=name,
        manifest_sha256=write_manifest(manifest, directory),
        final=final,
    )


def commit_next(
    place: Workplace, lease: Lease, out_dir: Path, *, final: bool = False
) -> Checkpoint:
    """Publish the increment that comes next, for this lease."""
    with transaction(place.factory) as session:
        job = session.get_one(Job, lease.job_id)
        head = session.get(Checkpoint, job.head_checkpoint_id) if job.head_checkpoint_id else None
        parent = head.manifest_sha256 if head else None
        increment = job.increments_done + 1
    event = write_increment(out_dir, increment, parent_sha256=parent, final=final)
    return publish(place, lease, out_dir, event)


@contextmanager
def crashing() -> Iterator[list[bool]]:
    """A block that may crash; whether it did."""
    crashed = [False]
    try:
        yield crashed
    except Crash:
        crashed[0] = True
