"""Administration: keys, webhooks and their deliveries, workers, usage, the audit log."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Form, Query, Request, Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.dashboard.viewing import AdminActor, AdminViewer, go, read_fields, show
from api.deps import Principal, ReadSession, SettingsDep, WriteSession
from api.errors import Problem
from api.schemas.api_keys import ApiKeyCreate
from api.schemas.webhooks import WebhookCreate
from registry import api_keys, audit, outbound, quotas, usage, webhooks
from registry.db import database_now
from registry.tables import Job, Tenant, Worker

router = APIRouter(prefix="/admin")

AUDIT_PER_PAGE = 100
DELIVERIES_PER_PAGE = 50
_USAGE_DAYS = 30
_WORKERS_KNOWN = timedelta(days=1)
_OVERLAP = timedelta(hours=1)
Choices = Annotated[list[str], Form(max_length=20)]


@router.get("")
def keys_page(request: Request, who: AdminViewer, session: ReadSession) -> Response:
    """API keys; the first page of the administration."""
    return _keys(request, session, who, fresh=None)


def _keys(request: Request, session: Session, who: Principal, *, fresh: str | None) -> Response:
    context = {
        "keys": list(reversed(api_keys.list_all(session, who.tenant_id))),
        "scopes": api_keys.SCOPES,
        "own": who.key_id,
        "fresh": fresh,
        "now": database_now(session),
        "part": "keys",
    }
    return show(request, "admin_keys.html", context)


@router.post("/keys")
def create_key(
    request: Request,
    who: AdminActor,
    session: WriteSession,
    scopes: Choices = [],  # noqa: B006  # FastAPI reads the default of a form's list like this.
    name: Annotated[str, Form(max_length=100)] = "",
) -> Response:
    """A key; its secret is on this page and nowhere else."""
    wanted = read_fields(ApiKeyCreate, {"name": name or None, "scopes": scopes})
    tenant = session.get_one(Tenant, who.tenant_id)
    _, secret = api_keys.create(session, tenant, wanted.scopes, name=wanted.name)
    return _keys(request, session, who, fresh=secret)


@router.post("/keys/{key_id}/rotate")
def rotate_key(request: Request, key_id: str, who: AdminActor, session: WriteSession) -> Response:
    """A new secret; the old one works for another hour."""
    row = api_keys.get(session, who.tenant_id, key_id)
    _, secret = api_keys.rotate(session, row, overlap=_OVERLAP)
    return _keys(request, session, who, fresh=secret)


@router.post("/keys/{key_id}/revoke")
def revoke_key(key_id: str, who: AdminActor, session: WriteSession) -> Response:
    """Make a key worthless; not the one that this session stands on."""
    if key_id == who.key_id:
        detail = "This session was opened with this key; sign in with another one first."
        raise Problem("invalid_state", detail)
    api_keys.revoke(session, api_keys.get(session, who.tenant_id, key_id))
    return go("/admin")


# --- webhooks -------------------------------------------------------------------------------------


@router.get("/webhooks")
def webhooks_page(request: Request, who: AdminViewer, session: ReadSession) -> Response:
    """Where the tenant hears of its jobs."""
    return _webhooks(request, session, who, fresh=None)


def _webhooks(request: Request, session: Session, who: Principal, *, fresh: str | None) -> Response:
    context = {
        "webhooks": webhooks.list_all(session, who.tenant_id),
        "events": webhooks.EVENTS,
        "fresh": fresh,
        "part": "webhooks",
    }
    return show(request, "admin_webhooks.html", context)


@router.post("/webhooks")
def create_webhook(
    request: Request,
    who: AdminActor,
    session: WriteSession,
    settings: SettingsDep,
    events: Choices = [],  # noqa: B006
    url: Annotated[str, Form(max_length=2048)] = "",
) -> Response:
    """A webhook; its secret is on this page and nowhere else."""
    wanted = read_fields(WebhookCreate, {"url": url, "events": events})
    outbound.parse(wanted.url, settings.webhook_private_hosts)
    _, secret = webhooks.create(
        session,
        tenant_id=who.tenant_id,
        url=wanted.url,
        events=wanted.events,
        master=settings.installation_secret,
    )
    return _webhooks(request, session, who, fresh=secret)


@router.get("/webhooks/{webhook_id}")
def deliveries_page(
    request: Request,
    webhook_id: str,
    who: AdminViewer,
    session: ReadSession,
    after: Annotated[str | None, Query(max_length=64)] = None,
) -> Response:
    """What was sent to a webhook, and how it was answered."""
    row = webhooks.get(session, who.tenant_id, webhook_id)
    found, has_more = webhooks.list_deliveries(session, row, limit=DELIVERIES_PER_PAGE, after=after)
    context = {"webhook": row, "deliveries": found, "has_more": has_more, "part": "webhooks"}
    return show(request, "admin_deliveries.html", context)


@router.post("/webhooks/{webhook_id}/{action}")
def steer_webhook(webhook_id: str, action: str, who: AdminActor, session: WriteSession) -> Response:
    """Switch a webhook on or off, try it, or call it no more."""
    row = webhooks.get(session, who.tenant_id, webhook_id, for_update=True)
    if action in ("enable", "disable"):
        row.status, row.status_reason = f"{action}d", None
    elif action == "test":
        webhooks.add_delivery(session, row.id, webhooks.TEST_EVENT, {})
        return go(f"/admin/webhooks/{webhook_id}")
    elif action == "delete":
        webhooks.delete(row)
    else:
        raise Problem("not_found", f"A webhook has no action {action!r}.")
    return go("/admin/webhooks")


@router.post("/webhooks/{webhook_id}/deliveries/{delivery_id}/redeliver")
def redeliver(
    webhook_id: str, delivery_id: str, who: AdminActor, session: WriteSession
) -> Response:
    """Send a message again."""
    row = webhooks.get(session, who.tenant_id, webhook_id)
    webhooks.redeliver(session, webhooks.get_delivery(session, row, delivery_id))
    return go(f"/admin/webhooks/{webhook_id}")


# --- reading --------------------------------------------------------------------------------------


@router.get("/workers")
def workers_page(request: Request, who: AdminViewer, session: ReadSession) -> Response:
    """Every worker heard of within a day."""
    now = database_now(session)
    query = select(Worker).where(Worker.heartbeat_at > now - _WORKERS_KNOWN)
    rows: Sequence[Worker] = session.scalars(query.order_by(Worker.heartbeat_at.desc())).all()
    at_work = [row.current_job_id for row in rows if row.current_job_id]
    ours = select(Job.id, Job.name, Job.model).where(
        Job.id.in_(at_work), Job.tenant_id == who.tenant_id
    )
    names = {key: name or model for key, name, model in session.execute(ours)}
    context = {"workers": rows, "names": names, "now": now, "part": "workers"}
    return show(request, "admin_workers.html", context)


@router.get("/usage")
def usage_page(request: Request, who: AdminViewer, session: ReadSession) -> Response:
    """What the tenant used in the last thirty days, and what it may."""
    now = database_now(session)
    context: dict[str, Any] = {
        "used": usage.measure(
            session, who.tenant_id, since=now - timedelta(days=_USAGE_DAYS), until=now
        ),
        "days": _USAGE_DAYS,
        "quotas": quotas.of(session, who.tenant_id),
        "queued": quotas.count_jobs(session, who.tenant_id, running=False),
        "running": quotas.count_jobs(session, who.tenant_id, running=True),
        "storage": quotas.storage_used(session, who.tenant_id),
        "part": "usage",
    }
    return show(request, "admin_usage.html", context)


@router.get("/audit")
def audit_page(
    request: Request,
    who: AdminViewer,
    session: ReadSession,
    before: Annotated[int | None, Query(ge=1, le=2**62)] = None,
    verify: bool = False,
) -> Response:
    """Who changed what, newest first; with `verify`, whether the chain of hashes is whole."""
    rows, has_more = audit.list_page(session, who.tenant_id, limit=AUDIT_PER_PAGE, before=before)
    keys = {row.id: row.name or row.prefix for row in api_keys.list_all(session, who.tenant_id)}
    context = {
        "entries": rows,
        "has_more": has_more,
        "keys": keys,
        "verdict": audit.verify(session, who.tenant_id) if verify else None,
        "part": "audit",
    }
    return show(request, "admin_audit.html", context)
