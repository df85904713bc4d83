"""Jobs as rows, not to change: a new one, one that is there, its version, and pages of them.

As a row a job costs half of what it costs as an object.
"""

from collections import namedtuple
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, cast

from sqlalchemy import (
    ColumnElement,
    Row,
    Select,
    and_,
    bindparam,
    exists,
    func,
    inspect,
    or_,
    select,
)

from registry.db import dialect_of, insert_row
from registry.errors import InvalidCursor, NotFound
from registry.prepared import Prepared, Reader
from registry.status import JobStatus
from registry.tables import Job

JobRow = Row[Any]
"""The columns of a job by the names that `Job` has for them."""

_NewJob: Any = namedtuple("_NewJob", [one.key for one in inspect(Job).column_attrs])  # type: ignore[misc]  # Names that are known at run time.


def insert(writer: Reader, said: Mapping[str, Any]) -> JobRow:
    """A new job with these values of its attributes."""
    return cast(JobRow, _NewJob(**insert_row(writer, Job, said)))


Order = Literal["asc", "desc"]

# Made once: putting a query together takes longer than running it.
_MINE = (Job.tenant_id == bindparam("tenant_id"), Job.deleted_at.is_(None))
_COLUMNS = [getattr(Job, one.key).label(one.key) for one in inspect(Job).column_attrs]
_LOOK = Prepared(select(*_COLUMNS).where(Job.id == bindparam("job_id"), *_MINE))
_VERSION = Prepared(select(Job.version).where(Job.id == bindparam("job_id"), *_MINE))


def look(reader: Reader, tenant_id: str, job_id: str) -> JobRow:
    """The tenant's job.

    Raises:
        NotFound: there is none, it was deleted, or it is another tenant's.
    """
    rows = _LOOK.rows(reader, tenant_id=tenant_id, job_id=job_id)
    if not rows:
        raise NotFound("job", job_id)
    return rows[0]


def version_of(reader: Reader, tenant_id: str, job_id: str) -> int:
    """The version of the tenant's job, and nothing else of it.

    Raises:
        NotFound: there is none, it was deleted, or it is another tenant's.
    """
    rows = _VERSION.rows(reader, tenant_id=tenant_id, job_id=job_id)
    if not rows:
        raise NotFound("job", job_id)
    version: int = rows[0].version
    return version


@dataclass(frozen=True, kw_only=True)
class JobFilter:
    """What a list is narrowed to; everything given must hold."""

    statuses: Sequence[JobStatus] = ()
    model: str | None = None
    name_contains: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class JobPage:
    items: list[JobRow]
    has_more: bool


_PLACE = (Job.created_at, Job.id)
_PAGES: Mapping[Order, Select[Any]] = {
    "asc": select(*_COLUMNS).where(*_MINE).order_by(*_PLACE).limit(bindparam("limit")),
    "desc": select(*_COLUMNS)
    .where(*_MINE)
    .order_by(*(column.desc() for column in _PLACE))
    .limit(bindparam("limit")),
}


def list_page(
    reader: Reader,
    tenant_id: str,
    *,
    limit: int = 20,
    after: str | None = None,
    order: Order = "desc",
    where: JobFilter | None = None,
) -> JobPage:
    """A page of the tenant's jobs by creation time, starting behind the job `after`.

    Raises:
        InvalidCursor: `after` is no job of this tenant.
    """
    query = _filtered(_PAGES[order], where, dialect_of(reader)) if where else _PAGES[order]
    if after is not None:
        query = query.where(_behind(reader, tenant_id, after, order))
    rows = list(reader.execute(query, {"tenant_id": tenant_id, "limit": limit + 1}).all())
    return JobPage(items=rows[:limit], has_more=len(rows) > limit)


def _filtered(query: Select[Any], where: JobFilter, dialect: str) -> Select[Any]:
    conditions = [_labelled(key, value, dialect) for key, value in where.metadata.items()]
    if where.statuses:
        conditions.append(Job.status.in_(where.statuses))
    if where.model is not None:
        conditions.append(Job.model == where.model)
    if where.name_contains:
        conditions.append(Job.name.icontains(where.name_contains, autoescape=True))
    if where.created_after is not None:
        conditions.append(Job.created_at > where.created_after)
    if where.created_before is not None:
        conditions.append(Job.created_at < where.created_before)
    return query.where(*conditions) if conditions else query


def _labelled(key: str, value: str, dialect: str) -> ColumnElement[bool]:
    if dialect == "postgresql":
        label: ColumnElement[str] = Job.job_metadata[key].as_string()
        return label == value
    # SQLite compares the key of a path as it stands in the JSON: never one that is escaped there.
    pair = func.json_each(Job.job_metadata).table_valued("key", "value")
    return exists().select_from(pair).where(pair.c.key == key, pair.c.value == value)


def _behind(reader: Reader, tenant_id: str, after: str, order: Order) -> Any:
    # Deleted jobs still mark a place, so that a list being paged does not break under its reader.
    place = reader.execute(
        select(Job.created_at, Job.id).where(Job.id == after, Job.tenant_id == tenant_id)
    ).one_or_none()
    if place is None:
        raise InvalidCursor(f"{after!r} is not a job of this list")
    created_at, job_id = place
    if order == "desc":
        return or_(Job.created_at < created_at, and_(Job.created_at == created_at, Job.id < job_id))
    return or_(Job.created_at > created_at, and_(Job.created_at == created_at, Job.id > job_id))
