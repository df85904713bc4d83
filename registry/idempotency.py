"""A request sent twice under one key is answered once: its row is inserted before the effect."""

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from registry.db import database_now, insert_unless_exists
from registry.errors import IdempotencyInProgress, IdempotencyKeyReused
from registry.tables import IdempotencyKey


@dataclass(frozen=True)
class Replay:
    """The answer that was given the first time."""

    status_code: int
    response: dict[str, Any]


def fingerprint(method: str, path: str, body: object) -> str:
    """The sha256 of a request; key order and spaces in the JSON body do not matter."""
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    text = f"{method}\n{path}\n{canonical}"
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def begin(session: Session, *, tenant_id: str, key: str, fingerprint: str) -> Replay | None:
    """Claim `key` for this transaction (None: go on, then `complete`), or the earlier answer.

    Raises:
        IdempotencyKeyReused: the key was used for another request.
        IdempotencyInProgress: the same request is being answered.
    """
    values = {
        "tenant_id": tenant_id,
        "key": key,
        "fingerprint": fingerprint,
        "created_at": database_now(session),
    }
    if insert_unless_exists(session, IdempotencyKey, values):
        return None
    row = session.scalars(
        select(IdempotencyKey)
        .where(IdempotencyKey.tenant_id == tenant_id, IdempotencyKey.key == key)
        .execution_options(populate_existing=True)
    ).one()
    if row.fingerprint != fingerprint:
        raise IdempotencyKeyReused(f"idempotency key {key!r} was used for another request")
    if row.status_code is None or row.response is None:
        raise IdempotencyInProgress(f"the request with idempotency key {key!r} is being answered")
    return Replay(status_code=row.status_code, response=row.response)


def complete(
    session: Session, *, tenant_id: str, key: str, status_code: int, response: dict[str, Any]
) -> None:
    """Keep the answer beside the effect it reports, in the same transaction."""
    row = session.get_one(IdempotencyKey, (tenant_id, key))
    row.status_code = status_code
    row.response = response


def purge(session: Session, before: datetime) -> int:
    """Forget keys first used before `before`; how many were."""
    result = session.execute(delete(IdempotencyKey).where(IdempotencyKey.created_at < before))
    return int(result.rowcount)  # type: ignore[attr-defined]  # Result[Any] of a DML is a CursorResult
