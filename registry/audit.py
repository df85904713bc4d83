"""The audit log of a tenant: a chain of hashes that shows when a row was changed or taken out."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from registry.db import database_now, insert_rows
from registry.ids import new_id
from registry.prepared import Prepared, Reader, connection_of
from registry.tables import AuditEntry, Tenant

GENESIS = "0" * 64
_BATCH = 500


@dataclass(frozen=True, kw_only=True)
class Action:
    """A request that changed something, or tried to."""

    key_id: str | None
    action: str
    object: str
    status_code: int
    request_id: str
    address: str | None


# Not a whole lock: rows that refer to the tenant, new jobs among them, need not wait for it.
_LOCK = Prepared(
    select(Tenant.id).where(Tenant.id == bindparam("tenant_id")).with_for_update(key_share=True)
)
_LAST = Prepared(
    select(AuditEntry.seq, AuditEntry.hash)
    .where(AuditEntry.tenant_id == bindparam("tenant_id"))
    .order_by(AuditEntry.seq.desc())
    .limit(1)
)


def append(writer: Reader, tenant_id: str, action: Action) -> None:
    """Add the next entry; the tenant's row is locked, so that a chain has no fork."""
    connection = connection_of(writer)
    _LOCK.rows(connection, tenant_id=tenant_id)
    last = next(iter(_LAST.rows(connection, tenant_id=tenant_id)), None)
    entry = {
        **vars(action),
        "tenant_id": tenant_id,
        "seq": last.seq + 1 if last else 1,
        "id": new_id("aud"),
        "created_at": database_now(connection),
        "previous_hash": last.hash if last else GENESIS,
    }
    insert_rows(connection, AuditEntry, [{**entry, "hash": digest(entry)}])


_HASHED = (
    *("tenant_id", "seq", "id", "key_id", "action", "object", "status_code"),
    *("request_id", "address", "created_at", "previous_hash"),
)


def digest(entry: Mapping[str, Any]) -> str:
    """The hash of an entry, over everything in it and the hash before it."""
    said = [entry[name] for name in _HASHED]
    return hashlib.sha256(json.dumps(said, default=datetime.isoformat).encode()).hexdigest()


def list_page(
    session: Session, tenant_id: str, *, limit: int, before: int | None
) -> tuple[list[AuditEntry], bool]:
    """Entries, newest first, below the number `before`; and whether more follow."""
    query = select(AuditEntry).where(AuditEntry.tenant_id == tenant_id)
    if before is not None:
        query = query.where(AuditEntry.seq < before)
    rows = list(session.scalars(query.order_by(AuditEntry.seq.desc()).limit(limit + 1)))
    return rows[:limit], len(rows) > limit


@dataclass(frozen=True)
class Verdict:
    """How many entries were read, and the first that is not what was written (None: all are).

    An end that was cut off shows only to who has noted `head` before.
    """

    entries: int
    broken_at: int | None
    head: str


def verify(session: Session, tenant_id: str) -> Verdict:
    """Follow the chain from its beginning."""
    seq, previous = 0, GENESIS
    while rows := _after(session, tenant_id, seq):
        for row in rows:
            seq += 1
            follows = row.seq == seq and row.previous_hash == previous
            if not follows or row.hash != digest(vars(row)):
                return Verdict(entries=seq - 1, broken_at=seq, head=previous)
            previous = row.hash
        session.expunge_all()
    return Verdict(entries=seq, broken_at=None, head=previous)


def _after(session: Session, tenant_id: str, seq: int) -> list[AuditEntry]:
    query = select(AuditEntry).where(AuditEntry.tenant_id == tenant_id, AuditEntry.seq > seq)
    return list(session.scalars(query.order_by(AuditEntry.seq).limit(_BATCH)))
