"""The strong check of a job's history: whatever was killed, the committed line is one line."""

from sqlalchemy import select

from pruning.manifest import MANIFEST_NAME, Manifest
from registry import checkpoints, events
from registry.db import SessionFactory, reading
from registry.storage import ArtifactStore
from registry.tables import Job

TERMINAL_EVENTS = {"job.succeeded", "job.failed", "job.cancelled"}


def check_history(factory: SessionFactory, store: ArtifactStore, job_id: str) -> None:
    """Assert every invariant of a job that has ended."""
    with reading(factory) as session:
        job = session.scalars(select(Job).where(Job.id == job_id)).one()
        line = checkpoints.increments(session, job_id)
        log = events.list_after(session, job_id, 0, 10_000)
        parent_id, parent_sha256, fence = None, None, 0
        for position, increment in enumerate(line, start=1):
            assert increment.idx == position
            assert increment.fence >= fence
            assert increment.parent_checkpoint_id == parent_id
            manifest = _manifest(session, store, increment.checkpoint_id)
            # The files are random: a parent that matches is the one really resumed from.
            assert manifest.lineage.parent_manifest_sha256 == parent_sha256
            parent_id, parent_sha256, fence = (
                increment.checkpoint_id,
                increment.manifest_sha256,
                increment.fence,
            )
        assert job.head_checkpoint_id == parent_id
        assert job.increments_done == len(line)
        assert job.lease_owner is None
        assert [event.seq for event in log] == list(range(1, len(log) + 1))
        assert len([e for e in log if e.type in TERMINAL_EVENTS]) == 1
        created = [e for e in log if e.type == "checkpoint.created"]
        # A damaged head is cut off, and its increment made anew.
        rejected = [
            e for e in log if e.type == "warning" and e.data.get("code") == "checkpoint_corrupt"
        ]
        assert len(created) == len(line) + len(rejected)


def _manifest(session, store: ArtifactStore, checkpoint_id: str) -> Manifest:  # type: ignore[no-untyped-def]
    manifest = None
    for file in checkpoints.files(session, checkpoint_id):
        content = b"".join(store.open_range(file.sha256))
        assert len(content) == file.size_bytes
        if file.path == MANIFEST_NAME:
            manifest = Manifest.model_validate_json(content)
    assert manifest is not None
    return manifest
