"""Files that users upload: text for their jobs."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sqlalchemy import and_, or_, select
from sqlalchemy.orm import Session

from pruning.recipe import Recipe
from pruning.recipe_parts.data import UploadData
from registry.blobs import refer_to
from registry.db import database_now, session_on
from registry.errors import FileInUse, FileNotUsable, InvalidCursor, NotFound
from registry.ids import new_id
from registry.job_rows import JobRow
from registry.prepared import Reader
from registry.status import TERMINAL
from registry.storage import StoredBlob
from registry.tables import Job, JobFile, UploadedFile

_BATCH = 100


def create(
    session: Session, *, tenant_id: str, name: str, num_bytes: int | None, sha256: str | None
) -> UploadedFile:
    """A file whose bytes are still to come; length and digest as announced, if they were."""
    row = UploadedFile(
        id=new_id("file"),
        tenant_id=tenant_id,
        name=name,
        size_bytes=num_bytes,
        declared_sha256=sha256,
        status="uploading",
        created_at=database_now(session),
    )
    session.add(row)
    session.flush()
    return row


def get(
    session: Session, tenant_id: str, file_id: str, *, for_update: bool = False
) -> UploadedFile:
    """The tenant's file.

    Raises:
        NotFound: there is none, it was deleted, or it is another tenant's.
    """
    query = select(UploadedFile).where(
        UploadedFile.id == file_id,
        UploadedFile.tenant_id == tenant_id,
        UploadedFile.status != "deleted",
    )
    if for_update:
        query = query.with_for_update().execution_options(populate_existing=True)
    row = session.scalars(query).one_or_none()
    if row is None:
        raise NotFound("file", file_id)
    return row


@dataclass(frozen=True)
class FilePage:
    items: list[UploadedFile]
    has_more: bool


def list_page(
    session: Session, tenant_id: str, *, limit: int = 20, after: str | None = None
) -> FilePage:
    """A page of the tenant's files, newest first, starting behind the file `after`.

    Raises:
        InvalidCursor: `after` is no file of this tenant.
    """
    query = select(UploadedFile).where(
        UploadedFile.tenant_id == tenant_id, UploadedFile.status != "deleted"
    )
    if after is not None:
        place = session.get(UploadedFile, after)
        if place is None or place.tenant_id != tenant_id:
            raise InvalidCursor(f"{after!r} is not a file of this list")
        query = query.where(
            or_(
                UploadedFile.created_at < place.created_at,
                and_(UploadedFile.created_at == place.created_at, UploadedFile.id < place.id),
            )
        )
    query = query.order_by(UploadedFile.created_at.desc(), UploadedFile.id.desc())
    rows = list(session.scalars(query.limit(limit + 1)))
    return FilePage(items=rows[:limit], has_more=len(rows) > limit)


def complete(session: Session, row: UploadedFile, blob: StoredBlob) -> None:
    """The bytes are stored: the file can be used.

    Raises:
        BlobNotFound: the blob is being collected; store it again.
    """
    refer_to(session, [blob])
    row.sha256, row.size_bytes = blob.sha256, blob.num_bytes
    row.status, row.ready_at = "ready", database_now(session)


def delete(session: Session, row: UploadedFile) -> None:
    """Forget a file; its bytes are collected later.

    Raises:
        FileInUse: a job that has not ended reads it.
    """
    query = (
        select(Job.id)
        .join(JobFile, JobFile.job_id == Job.id)
        .where(JobFile.file_id == row.id, Job.status.not_in(TERMINAL))
        .limit(1)
    )
    job_id = session.scalars(query).one_or_none()
    if job_id is not None:
        raise FileInUse(f"{row.id} is read by {job_id}, which has not ended")
    row.status, row.sha256, row.deleted_at = "deleted", None, database_now(session)


def give_up_abandoned(session: Session, before: datetime) -> list[str]:
    """Forget uploads begun before `before` that never became whole; their ids."""
    query = (
        select(UploadedFile)
        .where(UploadedFile.status == "uploading", UploadedFile.created_at < before)
        .limit(_BATCH)
        .with_for_update(skip_locked=True)
    )
    rows = list(session.scalars(query))
    for row in rows:
        row.status, row.deleted_at = "deleted", database_now(session)
    return [row.id for row in rows]


def part_path(data_dir: Path, file_id: str) -> Path:
    """Where the bytes of an upload lie until it is whole."""
    return data_dir / "uploads" / f"{file_id}.part"


# --- files in recipes -----------------------------------------------------------------------------


def named_in(recipe: Recipe) -> dict[str, str]:
    """The ids of the files that a recipe names, each with the field that does."""
    return {
        source.file: f"{param}.file"
        for param, source in recipe.sources()
        if isinstance(source, UploadData)
    }


def usable(session: Session, tenant_id: str, recipe: Recipe) -> list[UploadedFile]:
    """The files that a recipe names.

    Raises:
        FileNotUsable: one is not there, or not whole.
    """
    return usable_ones(session, tenant_id, named_in(recipe))


def usable_ones(session: Session, tenant_id: str, named: Mapping[str, str]) -> list[UploadedFile]:
    """The files of these ids, each with the field that names it.

    Raises:
        FileNotUsable: one is not there, or not whole.
    """
    found = []
    for file_id, param in named.items():
        row = session.get(UploadedFile, file_id)
        if row is None or row.tenant_id != tenant_id or row.status == "deleted":
            raise FileNotUsable(f"{param}: no file {file_id!r}", param=param)
        if row.status != "ready":
            raise FileNotUsable(f"{param}: {file_id} is not whole yet", param=param)
        found.append(row)
    return found


def attach(writer: Reader, job: JobRow, recipe: Recipe) -> None:
    """Note which files a new job reads.

    Raises:
        FileNotUsable: one is not there, or not whole.
    """
    if not named_in(recipe):
        return
    with session_on(writer) as session:
        for row in usable(session, job.tenant_id, recipe):
            session.add(JobFile(job_id=job.id, file_id=row.id))
        session.flush()


def list_for_job(session: Session, job_id: str) -> list[UploadedFile]:
    """The files that a job reads."""
    query = (
        select(UploadedFile)
        .join(JobFile, JobFile.file_id == UploadedFile.id)
        .where(JobFile.job_id == job_id)
    )
    return list(session.scalars(query))
