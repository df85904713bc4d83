"""Collecting blobs that nothing refers to: marked, looked at once more, deleted, forgotten.

A commit may want a blob in the very moment it is collected. The row decides: whoever holds it
locked goes first. A commit that finds its blob marked, or gone, publishes it again
(`worker.publish`); a collector deletes bytes only while it holds the marked row, so that bytes
published after that row was gone are never touched.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import ColumnElement, and_, exists, select
from sqlalchemy.orm import Session

from registry import retention
from registry.db import SessionFactory, database_now, insert_unless_exists, reading, transaction
from registry.settings import Settings
from registry.storage import ArtifactStore
from registry.tables import Base, Blob

BATCH = 200


@dataclass(frozen=True, kw_only=True)
class Collected:
    """What a round of collecting removed."""

    checkpoints: int = 0
    blobs: int = 0
    num_bytes: int = 0
    orphans: int = 0
    temporary: int = 0

    def __bool__(self) -> bool:
        return any((self.checkpoints, self.blobs, self.orphans, self.temporary))


def collect(factory: SessionFactory, store: ArtifactStore) -> Collected:
    """Delete what was dropped: rows without a reference, then their bytes.

    Cheap enough for every few seconds; it does not list the store.
    """
    with transaction(factory) as session:
        checkpoints = retention.apply_to_deleted(session)
        mark(session)
    blobs, num_bytes = delete_marked(factory, store)
    return Collected(checkpoints=checkpoints, blobs=blobs, num_bytes=num_bytes)


def collect_orphans(
    factory: SessionFactory, store: ArtifactStore, settings: Settings, now: datetime | None = None
) -> Collected:
    """Delete bytes that no row names: what was published and never committed, or half written.

    Bytes younger than `garbage_age_seconds` may be on their way into a commit and stay.
    """
    before = (now or datetime.now(UTC)) - timedelta(seconds=settings.garbage_age_seconds)
    old = [entry for entry in store.entries() if entry.modified_at < before]
    orphans = 0
    for start in range(0, len(old), BATCH):
        digests = [entry.sha256 for entry in old[start : start + BATCH]]
        with transaction(factory) as session:
            orphans += _claim_orphans(session, digests)
    blobs, num_bytes = delete_marked(factory, store)
    return Collected(
        blobs=blobs, num_bytes=num_bytes, orphans=orphans, temporary=store.discard_partial(before)
    )


def referenced(session: Session, digests: Sequence[str]) -> set[str]:
    """Which of the blobs some row refers to, in whatever table."""
    found: set[str] = set()
    for column in _references():
        found.update(session.scalars(select(column).where(column.in_(digests)).distinct()))
    return found


def _references() -> list[ColumnElement[str]]:
    # Every foreign key on the table of blobs, so that a table added later cannot be forgotten.
    return [
        column
        for table in Base.metadata.sorted_tables
        for column in table.columns
        if any(key.column is Blob.__table__.c.sha256 for key in column.foreign_keys)
    ]


def mark(session: Session) -> int:
    """Mark unreferenced blobs for deletion; how many."""
    unused = and_(*(~exists().where(column == Blob.sha256) for column in _references()))
    candidates = select(Blob.sha256).where(Blob.status == "stored", unused).limit(BATCH)
    digests = list(session.scalars(candidates))
    if not digests:
        return 0
    # A commit may have referred to one since. Locked rows gain no new reference, and only a new
    # statement sees those that were made while this one waited.
    query = (
        select(Blob)
        .where(Blob.sha256.in_(digests), Blob.status == "stored")
        .order_by(Blob.sha256)
        .with_for_update(skip_locked=True)
        .execution_options(populate_existing=True)
    )
    locked = list(session.scalars(query))
    used = referenced(session, [blob.sha256 for blob in locked])
    unused_blobs = [blob for blob in locked if blob.sha256 not in used]
    for blob in unused_blobs:
        blob.status = "deleting"
    return len(unused_blobs)


def _claim_orphans(session: Session, digests: Sequence[str]) -> int:
    known = set(session.scalars(select(Blob.sha256).where(Blob.sha256.in_(digests))))
    values = {"size_bytes": 0, "status": "deleting", "created_at": database_now(session)}
    return sum(
        insert_unless_exists(session, Blob, {"sha256": sha256, **values})
        for sha256 in sorted(set(digests) - known)
    )


def delete_marked(factory: SessionFactory, store: ArtifactStore) -> tuple[int, int]:
    """Delete the bytes of marked blobs, each under the lock of its row; how many, and their size.

    A collector that died leaves marks, which the next one finds here.
    """
    with reading(factory) as session:
        marked = list(session.scalars(select(Blob.sha256).where(Blob.status == "deleting")))
    blobs = num_bytes = 0
    for sha256 in marked:
        with transaction(factory) as session:
            size = _delete_one(session, store, sha256)
        if size is not None:
            blobs, num_bytes = blobs + 1, num_bytes + size
    return blobs, num_bytes


def _delete_one(session: Session, store: ArtifactStore, sha256: str) -> int | None:
    query = select(Blob).where(Blob.sha256 == sha256, Blob.status == "deleting").with_for_update()
    blob = session.scalars(query).one_or_none()
    if blob is None:
        return None
    store.delete(sha256)
    session.delete(blob)
    return blob.size_bytes
