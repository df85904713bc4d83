"""Webhooks: where a tenant hears of its jobs, and what became of each message."""

from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Response
from fastapi.responses import JSONResponse
from sqlalchemy.orm import Session

from api.answer_once import IdempotencyKey, answer_once
from api.bodies import Body, json_body
from api.deps import Admin, ReadSession, SettingsDep, WriteSession
from api.openapi import body_of, problems
from api.representations import read_webhook
from api.schemas.webhooks import (
    DeliveryPage,
    DeliveryRead,
    SecretRotate,
    WebhookCreate,
    WebhookList,
    WebhookRead,
    WebhookSecretRead,
    WebhookUpdate,
)
from api.serving import etag_of, matches_etag, require_match, written
from registry import outbound, webhooks
from registry.tables import Webhook, WebhookDelivery

router = APIRouter(prefix="/v1/webhooks", tags=["administration"])

IfMatch = Annotated[
    str | None, Header(description="Only if the webhook is still as this ETag, else 412.")
]
_REFUSALS = problems(401, 403, 404, 422)
_WRITING = problems(400, 401, 403, 404, 409, 413, 415, 422)


@router.post(
    "",
    status_code=201,
    response_model=WebhookSecretRead,
    summary="Add a webhook",
    openapi_extra=body_of("WebhookCreate"),
    responses=_WRITING,
)
def create_webhook(
    who: Admin,
    body: Annotated[Body[WebhookCreate], Depends(json_body(WebhookCreate))],
    session: WriteSession,
    settings: SettingsDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Hear of your jobs at an address. Keep the secret: a replay does not have it."""
    outbound.parse(body.value.url, settings.webhook_private_hosts)

    def create() -> dict[str, Any]:
        row, secret = webhooks.create(
            session,
            tenant_id=who.tenant_id,
            url=body.value.url,
            events=body.value.events,
            master=settings.installation_secret,
        )
        return _with_secret(row, secret)

    answer = answer_once(
        session,
        tenant_id=who.tenant_id,
        key=idempotency_key,
        path="/v1/webhooks",
        written=body.written,
        create=create,
        secret=("secret",),
    )
    headers = {"Location": f"/v1/webhooks/{answer.body['id']}", "Cache-Control": "no-store"}
    return JSONResponse(answer.body, 201, {**headers, **answer.headers})


def _with_secret(row: Webhook, secret: str) -> dict[str, Any]:
    read = WebhookSecretRead(**read_webhook(row).model_dump(), secret=secret)
    return read.model_dump(mode="json")


@router.get("", summary="List webhooks", responses=problems(401, 403, 422))
def list_webhooks(who: Admin, session: ReadSession) -> WebhookList:
    """Every webhook of your tenant."""
    return WebhookList(
        data=[read_webhook(row) for row in webhooks.list_all(session, who.tenant_id)]
    )


@router.get(
    "/{webhook_id}",
    response_model=WebhookRead,
    summary="Read a webhook",
    responses={304: {"description": "Unchanged."}, **_REFUSALS},
)
def get_webhook(
    webhook_id: str,
    who: Admin,
    session: ReadSession,
    if_none_match: Annotated[str | None, Header(description="An ETag you have.")] = None,
) -> Response:
    """One webhook, without its secret."""
    answer = read_webhook(webhooks.get(session, who.tenant_id, webhook_id))
    headers = {"ETag": etag_of(answer), "Cache-Control": "private, no-cache"}
    if matches_etag(if_none_match, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    return written(answer, headers)


@router.patch(
    "/{webhook_id}",
    response_model=WebhookRead,
    summary="Change a webhook",
    openapi_extra=body_of("WebhookUpdate"),
    responses={**_WRITING, **problems(412)},
)
def update_webhook(
    webhook_id: str,
    who: Admin,
    body: Annotated[Body[WebhookUpdate], Depends(json_body(WebhookUpdate))],
    session: WriteSession,
    settings: SettingsDep,
    if_match: IfMatch = None,
) -> Response:
    """Another address, other events, or whether it is called; with If-Match only if unchanged."""
    wanted = body.value
    row = _locked(session, who.tenant_id, webhook_id, if_match)
    if wanted.url is not None:
        outbound.parse(wanted.url, settings.webhook_private_hosts)
        row.url = wanted.url
    if wanted.events is not None:
        row.events = list(wanted.events)
    if wanted.status is not None:
        row.status, row.status_reason = wanted.status, None
    answer = read_webhook(row)
    return written(answer, {"ETag": etag_of(answer)})


def _locked(session: Session, tenant_id: str, webhook_id: str, if_match: str | None) -> Webhook:
    """The webhook, held until the answer; with `if_match` only if it is as the caller knows it."""
    row = webhooks.get(session, tenant_id, webhook_id, for_update=True)
    require_match(if_match, etag_of(read_webhook(row)))
    return row


@router.delete(
    "/{webhook_id}",
    status_code=204,
    summary="Remove a webhook",
    responses={**_REFUSALS, **problems(412)},
)
def delete_webhook(
    webhook_id: str, who: Admin, session: WriteSession, if_match: IfMatch = None
) -> None:
    """Call it no more."""
    webhooks.delete(_locked(session, who.tenant_id, webhook_id, if_match))


@router.post(
    "/{webhook_id}/rotate-secret",
    response_model=WebhookSecretRead,
    summary="Replace the secret",
    openapi_extra=body_of("SecretRotate", required=False),
    responses=_WRITING,
)
def rotate_secret(
    webhook_id: str,
    who: Admin,
    body: Annotated[Body[SecretRotate], Depends(json_body(SecretRotate, optional=True))],
    session: WriteSession,
    settings: SettingsDep,
) -> Response:
    """A new secret; messages carry both signatures until the old one ends."""
    row = webhooks.get(session, who.tenant_id, webhook_id, for_update=True)
    overlap = timedelta(seconds=body.value.overlap_s)
    secret = webhooks.rotate(session, row, overlap=overlap, master=settings.installation_secret)
    return JSONResponse(_with_secret(row, secret), headers={"Cache-Control": "no-store"})


@router.post("/{webhook_id}/test", status_code=202, summary="Send a test", responses=_REFUSALS)
def test_webhook(webhook_id: str, who: Admin, session: WriteSession) -> DeliveryRead:
    """Queue a message of type `webhook.test`."""
    row = webhooks.get(session, who.tenant_id, webhook_id)
    return _read_delivery(webhooks.add_delivery(session, row.id, webhooks.TEST_EVENT, {}))


@router.get("/{webhook_id}/deliveries", summary="List deliveries", responses=_REFUSALS)
def list_deliveries(
    webhook_id: str,
    who: Admin,
    session: ReadSession,
    limit: Annotated[int, Query(ge=1, le=100, description="Deliveries per page.")] = 20,
    after: Annotated[
        str | None,
        Query(pattern=r"^dlv_[0-9a-f]{32}$", description="Id of the last delivery before."),
    ] = None,
) -> DeliveryPage:
    """What was sent to a webhook and how it was answered, newest first."""
    row = webhooks.get(session, who.tenant_id, webhook_id)
    rows, has_more = webhooks.list_deliveries(session, row, limit=limit, after=after)
    return DeliveryPage(
        data=[_read_delivery(one) for one in rows],
        has_more=has_more,
        last_id=rows[-1].id if rows else None,
    )


@router.post(
    "/{webhook_id}/deliveries/{delivery_id}/redeliver",
    status_code=202,
    summary="Send again",
    responses=_REFUSALS,
)
def redeliver(webhook_id: str, delivery_id: str, who: Admin, session: WriteSession) -> DeliveryRead:
    """Queue a message anew, under its old id, so that a receiver can tell it has it."""
    webhook = webhooks.get(session, who.tenant_id, webhook_id)
    row = webhooks.get_delivery(session, webhook, delivery_id)
    webhooks.redeliver(session, row)
    return _read_delivery(row)


def _read_delivery(row: WebhookDelivery) -> DeliveryRead:
    return DeliveryRead.model_validate(
        {
            "id": row.id,
            "webhook": row.webhook_id,
            "event_type": row.event_type,
            "payload": row.payload,
            "status": row.status,
            "attempts": row.num_attempts,
            "status_code": row.status_code,
            "error": row.error,
            "next_at": row.next_at,
            "created_at": row.created_at,
            "ended_at": row.ended_at,
        }
    )
