"""What a tenant may use at once. A quota that is not set does not limit."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam, func, select

from registry.errors import QuotaExceeded
from registry.prepared import Prepared, Reader
from registry.status import LEASED, TERMINAL
from registry.tables import Checkpoint, CheckpointFile, Job, Tenant, UploadedFile


@dataclass(frozen=True, kw_only=True)
class Quotas:
    """The limits of one tenant."""

    max_queued: int | None = None
    max_running: int | None = None
    storage_bytes: int | None = None


_OF_TENANT = select(Tenant.quotas).where(Tenant.id == bindparam("tenant_id"))
_QUOTAS, _LOCKED = Prepared(_OF_TENANT), Prepared(_OF_TENANT.with_for_update(key_share=True))


def of(reader: Reader, tenant_id: str, *, lock: bool = False) -> Quotas:
    """The tenant's quotas; with `lock`, who asks next waits until this transaction has ended."""
    (row,) = (_LOCKED if lock else _QUOTAS).rows(reader, tenant_id=tenant_id)
    found: dict[str, Any] = row.quotas
    known = {name: found.get(name) for name in Quotas.__dataclass_fields__}
    return Quotas(**known)


def set_quotas(tenant: Tenant, quotas: Quotas) -> None:
    """Replace the tenant's quotas; jobs and files that are there stay."""
    tenant.quotas = {
        name: value
        for name in Quotas.__dataclass_fields__
        if (value := getattr(quotas, name)) is not None
    }


def check_job(reader: Reader, tenant_id: str, *, storage_bytes: int = 0) -> None:
    """See that the tenant may have one more job, which would store `storage_bytes`.

    Raises:
        QuotaExceeded: it would be one too many, or would not fit.
    """
    limits = of(reader, tenant_id)
    if limits.max_queued is not None:
        limits = of(reader, tenant_id, lock=True)
        waiting = count_jobs(reader, tenant_id, running=False)
        if limits.max_queued is not None and waiting >= limits.max_queued:
            raise QuotaExceeded("quota_jobs", f"{waiting} jobs wait already", limits.max_queued)
    if limits.storage_bytes is not None:
        check_storage(reader, tenant_id, storage_bytes)


def check_storage(reader: Reader, tenant_id: str, num_bytes: int) -> None:
    """See that so many bytes more are within the tenant's quota.

    Raises:
        QuotaExceeded: they are not.
    """
    if of(reader, tenant_id).storage_bytes is None:
        return
    limit = of(reader, tenant_id, lock=True).storage_bytes
    used, reserved = storage_used(reader, tenant_id), storage_reserved(reader, tenant_id)
    if limit is not None and used + reserved + num_bytes > limit:
        message = (
            f"{used} bytes are stored and {reserved} set aside for jobs under way, "
            f"{num_bytes} more are too many"
        )
        raise QuotaExceeded("quota_storage", message, limit)


def may_run(reader: Reader, tenant_id: str) -> bool:
    """Whether one more job of the tenant may be given to a worker."""
    if of(reader, tenant_id).max_running is None:
        return True
    limit = of(reader, tenant_id, lock=True).max_running
    return limit is None or count_jobs(reader, tenant_id, running=True) < limit


def has_room(reader: Reader, tenant_id: str, leaves: int) -> bool:
    """Whether one more job of the tenant could run once so many of it have left: a look only."""
    limit = of(reader, tenant_id).max_running
    return limit is None or count_jobs(reader, tenant_id, running=True) - leaves < limit


def count_jobs(reader: Reader, tenant_id: str, *, running: bool) -> int:
    """How many jobs workers hold, or how many have not ended and no worker holds."""
    held = Job.status.in_(LEASED)
    query = select(func.count()).where(
        Job.tenant_id == tenant_id,
        Job.deleted_at.is_(None),
        held if running else Job.status.not_in({*LEASED, *TERMINAL}),
    )
    return reader.execute(query).scalar_one()


def storage_used(reader: Reader, tenant_id: str) -> int:
    """Bytes of the tenant's checkpoints and files; what two of them share counts twice."""
    checkpoints = (
        select(func.coalesce(func.sum(CheckpointFile.size_bytes), 0))
        .join(Checkpoint, Checkpoint.id == CheckpointFile.checkpoint_id)
        .where(Checkpoint.tenant_id == tenant_id, Checkpoint.status == "committed")
    )
    files = select(func.coalesce(func.sum(UploadedFile.size_bytes), 0)).where(
        UploadedFile.tenant_id == tenant_id, UploadedFile.status != "deleted"
    )
    return sum(int(reader.execute(query).scalar_one() or 0) for query in (checkpoints, files))


def storage_reserved(reader: Reader, tenant_id: str) -> int:
    """Bytes that the tenant's jobs under way were given at their creation and have not stored."""
    stored = (
        select(Checkpoint.job_id, func.sum(CheckpointFile.size_bytes).label("num_bytes"))
        .join(CheckpointFile, Checkpoint.id == CheckpointFile.checkpoint_id)
        .where(Checkpoint.tenant_id == tenant_id)
        .group_by(Checkpoint.job_id)
        .subquery()
    )
    query = (
        select(Job.reserved_bytes, func.coalesce(stored.c.num_bytes, 0))
        .outerjoin(stored, stored.c.job_id == Job.id)
        .where(Job.tenant_id == tenant_id, Job.finished_at.is_(None), Job.reserved_bytes > 0)
    )
    return sum(max(reserved - int(held), 0) for reserved, held in reader.execute(query))
