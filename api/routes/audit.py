"""Who changed what."""

from typing import Annotated

from fastapi import APIRouter, Query

from api.deps import Admin, ReadSession
from api.openapi import problems
from api.schemas.audit import AuditEntryRead, AuditPage, AuditVerification
from registry import audit
from registry.tables import AuditEntry

router = APIRouter(prefix="/v1/audit", tags=["administration"])
_REFUSALS = problems(401, 403, 422)


@router.get("", summary="Read the audit log", responses=_REFUSALS)
def list_entries(
    who: Admin,
    session: ReadSession,
    limit: Annotated[int, Query(ge=1, le=1000, description="Entries per page.")] = 100,
    before: Annotated[
        int | None, Query(ge=1, le=2**62, description="Only entries numbered below this.")
    ] = None,
) -> AuditPage:
    """Every request of your tenant that may have changed something, newest first."""
    rows, has_more = audit.list_page(session, who.tenant_id, limit=limit, before=before)
    return AuditPage(
        data=[_read(row) for row in rows],
        has_more=has_more,
        last_seq=rows[-1].seq if rows else None,
    )


@router.get("/verify", summary="Verify the audit log", responses=_REFUSALS)
def verify_entries(who: Admin, session: ReadSession) -> AuditVerification:
    """Follow the chain of hashes from its beginning."""
    found = audit.verify(session, who.tenant_id)
    return AuditVerification(
        valid=found.broken_at is None,
        entries=found.entries,
        broken_at=found.broken_at,
        head=found.head,
    )


def _read(row: AuditEntry) -> AuditEntryRead:
    return AuditEntryRead(
        id=row.id,
        seq=row.seq,
        key=row.key_id,
        action=row.action,
        path=row.object,
        status=row.status_code,
        request_id=row.request_id,
        address=row.address,
        created_at=row.created_at,
        previous_hash=row.previous_hash,
        hash=row.hash,
    )
