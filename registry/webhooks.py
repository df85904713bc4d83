"""Webhooks after the Standard Webhooks specification: who hears of what, signed how.

No secret is stored: each is derived from the installation's, the webhook's id and a random part
that is kept, so that a copy of the database signs nothing.
"""

import base64
import hashlib
import hmac
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import product
from typing import Any

from sqlalchemy import bindparam, or_, select
from sqlalchemy.orm import Session

from registry.db import database_now, session_on
from registry.errors import NotFound
from registry.ids import new_id
from registry.job_rows import JobRow
from registry.prepared import Prepared, Reader
from registry.tables import Job, Webhook, WebhookDelivery

EVENTS = (
    *("job.created", "job.started", "job.retrying", "job.paused", "job.resumed"),
    *("job.succeeded", "job.failed", "job.cancelled", "checkpoint.created", "eval.completed"),
)
"""What a webhook may ask for."""
TEST_EVENT = "webhook.test"
_NONCE_BYTES = 16


@dataclass(frozen=True)
class WebhookWish:
    """Where to send which events of one job."""

    url: str
    events: Sequence[str]


def create(
    session: Session, *, tenant_id: str, url: str, events: Sequence[str], master: bytes
) -> tuple[Webhook, str]:
    """A webhook for all jobs of a tenant, and its secret."""
    row = _add(session, tenant_id, WebhookWish(url, events), job_id=None)
    return row, signing_secrets(row, master, row.created_at)[0]


def create_for_job(session: Session, job: JobRow, wish: WebhookWish) -> Webhook:
    """A webhook that hears of this job alone."""
    return _add(session, job.tenant_id, wish, job_id=job.id)


def of_job(session: Session, job_id: str) -> Webhook | None:
    """The webhook a job was made with, if it was."""
    return session.scalars(select(Webhook).where(Webhook.job_id == job_id)).one_or_none()


def _add(session: Session, tenant_id: str, wish: WebhookWish, *, job_id: str | None) -> Webhook:
    row = Webhook(
        id=new_id("wh"),
        tenant_id=tenant_id,
        job_id=job_id,
        url=wish.url,
        events=list(wish.events),
        secrets=[_fresh()],
        status="enabled",
        created_at=database_now(session),
    )
    session.add(row)
    session.flush()
    return row


def _fresh() -> dict[str, Any]:
    return {"nonce": secrets.token_hex(_NONCE_BYTES), "ends_at": None}


def get(session: Session, tenant_id: str, webhook_id: str, *, for_update: bool = False) -> Webhook:
    """The tenant's webhook.

    Raises:
        NotFound: there is none, it was deleted, or it is another tenant's.
    """
    query = select(Webhook).where(
        Webhook.id == webhook_id, Webhook.tenant_id == tenant_id, Webhook.status != "deleted"
    )
    if for_update:
        query = query.with_for_update().execution_options(populate_existing=True)
    row = session.scalars(query).one_or_none()
    if row is None:
        raise NotFound("webhook", webhook_id)
    return row


def list_all(session: Session, tenant_id: str) -> list[Webhook]:
    """Every webhook of a tenant, oldest first."""
    query = select(Webhook).where(Webhook.tenant_id == tenant_id, Webhook.status != "deleted")
    return list(session.scalars(query.order_by(Webhook.created_at, Webhook.id)))


def delete(row: Webhook) -> None:
    """Call it no more; its deliveries stay to be read by nobody."""
    row.status = "deleted"


def rotate(session: Session, row: Webhook, *, overlap: timedelta, master: bytes) -> str:
    """A new secret; the one before signs beside it for `overlap`."""
    now = database_now(session)
    ends_at = (now + overlap).isoformat()
    older = [{**secret, "ends_at": secret["ends_at"] or ends_at} for secret in row.secrets]
    row.secrets = [_fresh(), *(s for s in older if datetime.fromisoformat(s["ends_at"]) > now)]
    return signing_secrets(row, master, now)[0]


def signing_secrets(row: Webhook, master: bytes, now: datetime) -> list[str]:
    """The secrets that are valid now, newest first, as `whsec_…`."""
    valid = [
        secret
        for secret in row.secrets
        if secret["ends_at"] is None or datetime.fromisoformat(secret["ends_at"]) > now
    ]
    return [_derive(row.id, secret["nonce"], master) for secret in valid]


def _derive(webhook_id: str, nonce: str, master: bytes) -> str:
    key = hmac.digest(master, f"webhook\0{webhook_id}\0{nonce}".encode(), hashlib.sha256)
    return "whsec_" + base64.b64encode(key).decode()


def sign(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """`v1,<base64>` over `id.timestamp.body`."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


# --- deliveries -----------------------------------------------------------------------------------


_LISTENING = Prepared(
    select(Webhook.id, Webhook.events).where(
        Webhook.tenant_id == bindparam("tenant_id"),
        Webhook.status == "enabled",
        or_(Webhook.job_id.is_(None), Webhook.job_id == bindparam("job_id")),
    )
)


def announce(writer: Reader, job: Job | JobRow, events: Sequence[Mapping[str, Any]]) -> None:
    """Queue events of a job, as rows of its log, for every webhook that asks for them."""
    told = [event for event in events if event["type"] in EVENTS]
    if not told:
        return
    listening = _LISTENING.rows(writer, tenant_id=job.tenant_id, job_id=job.id)
    for event, (webhook_id, wanted) in product(told, listening):
        if event["type"] in wanted:
            said = {"job": job.id, "seq": event["seq"], "level": event["level"]}
            data = {**said, **event["data"]}
            with session_on(writer) as session:
                add_delivery(session, webhook_id, event["type"], data, event_id=event["id"])


def add_delivery(
    session: Session,
    webhook_id: str,
    event_type: str,
    data: Mapping[str, Any],
    *,
    event_id: str | None = None,
) -> WebhookDelivery:
    """Queue one message, due now."""
    now = database_now(session)
    row = WebhookDelivery(
        id=new_id("dlv"),
        webhook_id=webhook_id,
        event_id=event_id,
        event_type=event_type,
        payload={"type": event_type, "timestamp": now.isoformat(), "data": dict(data)},
        status="pending",
        num_attempts=0,
        next_at=now,
        created_at=now,
    )
    session.add(row)
    session.flush()
    return row


def list_deliveries(
    session: Session, webhook: Webhook, *, limit: int, after: str | None
) -> tuple[list[WebhookDelivery], bool]:
    """Deliveries, newest first, behind the delivery `after`; and whether more follow."""
    query = select(WebhookDelivery).where(WebhookDelivery.webhook_id == webhook.id)
    if after is not None:
        # Ids sort by creation.
        query = query.where(WebhookDelivery.id < after)
    rows = list(session.scalars(query.order_by(WebhookDelivery.id.desc()).limit(limit + 1)))
    return rows[:limit], len(rows) > limit


def get_delivery(session: Session, webhook: Webhook, delivery_id: str) -> WebhookDelivery:
    """One delivery.

    Raises:
        NotFound: the webhook has none of that id.
    """
    row = session.get(WebhookDelivery, delivery_id)
    if row is None or row.webhook_id != webhook.id:
        raise NotFound("delivery", delivery_id)
    return row


def redeliver(session: Session, row: WebhookDelivery) -> None:
    """Send a message again from the first attempt on, with its old id."""
    row.status, row.num_attempts = "pending", 0
    row.next_at, row.ended_at, row.error = database_now(session), None, None


def body_of(row: WebhookDelivery) -> bytes:
    """The bytes that are sent and signed."""
    return json.dumps(row.payload, separators=(",", ":"), sort_keys=True).encode()
