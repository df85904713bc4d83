"""What the tenant has used."""

from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Query

from api.deps import Admin, ReadSession
from api.openapi import problems
from api.schemas.api_keys import QuotasRead, UsageRead
from api.schemas.base import UtcTime
from registry import quotas, usage
from registry.db import database_now

router = APIRouter(prefix="/v1/usage", tags=["administration"])
_DEFAULT = timedelta(days=30)
_EARLIEST = datetime(1, 1, 1, tzinfo=UTC)


@router.get("", summary="Usage and quotas", responses=problems(401, 403, 422))
def read_usage(
    who: Admin,
    session: ReadSession,
    since: Annotated[UtcTime | None, Query(description="Default: 30 days before `until`.")] = None,
    until: Annotated[UtcTime | None, Query(description="Default: now.")] = None,
) -> UsageRead:
    """Jobs, tokens and worker time of jobs created in a time; storage, queue and limits now."""
    end = until or database_now(session)
    start = since or end - min(_DEFAULT, end - _EARLIEST)
    found = usage.measure(session, who.tenant_id, since=start, until=end)
    limits = quotas.of(session, who.tenant_id)
    return UsageRead(
        since=start,
        until=end,
        jobs=dict(found.jobs),
        tokens=found.tokens,
        worker_seconds=found.worker_seconds,
        queued_now=quotas.count_jobs(session, who.tenant_id, running=False),
        running_now=quotas.count_jobs(session, who.tenant_id, running=True),
        storage_bytes_now=quotas.storage_used(session, who.tenant_id),
        quotas=QuotasRead(
            max_queued=limits.max_queued,
            max_running=limits.max_running,
            storage_bytes=limits.storage_bytes,
        ),
    )
