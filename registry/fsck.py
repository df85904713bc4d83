"""Checking what is stored against what is recorded, byte for byte."""

import hashlib
from dataclasses import dataclass, field

from sqlalchemy import select

from pruning.manifest import MANIFEST_NAME
from registry import garbage
from registry.db import SessionFactory, reading
from registry.errors import BlobNotFound
from registry.storage import ArtifactStore, Entry
from registry.tables import Blob, Checkpoint, CheckpointFile


@dataclass(kw_only=True)
class Report:
    """What was found; digests of blobs, but `manifests` names checkpoints.

    `missing` and `corrupt` lose data; `orphans` (bytes without a row) and `unreferenced` (rows that
    nothing needs) only cost space until the next collection.
    """

    num_blobs: int = 0
    num_bytes: int = 0
    missing: list[str] = field(default_factory=list)
    corrupt: list[str] = field(default_factory=list)
    manifests: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    unreferenced: list[str] = field(default_factory=list)

    @property
    def is_sound(self) -> bool:
        return not (self.missing or self.corrupt or self.manifests)


def check(factory: SessionFactory, store: ArtifactStore) -> Report:
    """Hash every blob, and compare the store with the database.

    A service may run meanwhile: what was committed or collected in between is looked at again.
    """
    listed = {entry.sha256: entry for entry in store.entries()}
    rows = _stored(factory)
    used = _referenced(factory, list(rows))
    report = Report()
    for sha256, size in sorted(rows.items()):
        _check_blob(report, store, sha256, size)
    after = _stored(factory)
    report.missing = [sha256 for sha256 in report.missing if sha256 in after]
    report.orphans = _orphans(factory, listed, after)
    report.unreferenced = sorted(set(rows) & set(after) - used)
    report.manifests = _wrong_manifests(factory)
    return report


def _stored(factory: SessionFactory) -> dict[str, int]:
    query = select(Blob.sha256, Blob.size_bytes).where(Blob.status == "stored")
    with reading(factory) as session:
        return {row.sha256: row.size_bytes for row in session.execute(query)}


def _referenced(factory: SessionFactory, digests: list[str]) -> set[str]:
    found: set[str] = set()
    with reading(factory) as session:
        for start in range(0, len(digests), garbage.BATCH):
            found |= garbage.referenced(session, digests[start : start + garbage.BATCH])
    return found


def _orphans(
    factory: SessionFactory, listed: dict[str, Entry], stored: dict[str, int]
) -> list[str]:
    with reading(factory) as session:
        marked = set(session.scalars(select(Blob.sha256).where(Blob.status == "deleting")))
    return sorted(set(listed) - set(stored) - marked)


def _check_blob(report: Report, store: ArtifactStore, sha256: str, size: int) -> None:
    digest = hashlib.sha256()
    num_bytes = 0
    try:
        for piece in store.open_range(sha256):
            digest.update(piece)
            num_bytes += len(piece)
    except BlobNotFound:
        report.missing.append(sha256)
        return
    report.num_blobs += 1
    report.num_bytes += num_bytes
    if (digest.hexdigest(), num_bytes) != (sha256, size):
        report.corrupt.append(sha256)


def _wrong_manifests(factory: SessionFactory) -> list[str]:
    """Checkpoints whose manifest is not the file that was committed."""
    query = (
        select(Checkpoint.id)
        .join(CheckpointFile, CheckpointFile.checkpoint_id == Checkpoint.id)
        .where(
            CheckpointFile.path == MANIFEST_NAME,
            CheckpointFile.sha256 != Checkpoint.manifest_sha256,
        )
        .order_by(Checkpoint.id)
    )
    with reading(factory) as session:
        return list(session.scalars(query))
