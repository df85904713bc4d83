"""Sending what webhooks are owed: claimed under a lock, sent without one, recorded after."""

import http.client
import logging
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from registry import outbound, webhooks
from registry.db import SessionFactory, database_now, transaction
from registry.outbound import ForbiddenUrl
from registry.settings import Settings
from registry.tables import Webhook, WebhookDelivery

RETRIES = tuple(
    timedelta(seconds=seconds) for seconds in (5, 300, 1800, 7200, 18_000, 36_000, 50_400)
)
"""Pauses after each failed attempt; when they are used up the delivery has failed."""
BATCH = 10
_CLAIM = timedelta(seconds=120)
_JITTER = 0.2
_GONE = 410

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Message:
    """All that sending needs, taken out of the transaction."""

    delivery_id: str
    url: str
    body: bytes
    headers: Mapping[str, str]


@dataclass(frozen=True)
class _Result:
    status_code: int | None
    error: str | None


def deliver_due(factory: SessionFactory, settings: Settings, master: bytes) -> int:
    """Send every delivery that is due, a batch of them; how many."""
    with transaction(factory) as session:
        messages = _claim(session, master)
    for message in messages:
        result = _send(message, settings)
        with transaction(factory) as session:
            _record(session, message.delivery_id, result)
    return len(messages)


def _claim(session: Session, master: bytes) -> list[_Message]:
    now = database_now(session)
    query = (
        select(WebhookDelivery)
        .where(WebhookDelivery.status == "pending", WebhookDelivery.next_at <= now)
        .order_by(WebhookDelivery.next_at)
        .limit(BATCH)
        .with_for_update(skip_locked=True)
        .execution_options(populate_existing=True)
    )
    messages = []
    for row in session.scalars(query):
        webhook = session.get_one(Webhook, row.webhook_id)
        if webhook.status != "enabled":
            row.status, row.ended_at, row.next_at = "failed", now, None
            row.error = f"the webhook is {webhook.status}"
            continue
        # A sender that dies leaves it due again.
        row.next_at = now + _CLAIM
        messages.append(_message(row, webhook, webhooks.signing_secrets(webhook, master, now)))
    return messages


def _message(row: WebhookDelivery, webhook: Webhook, secrets: list[str]) -> _Message:
    body, timestamp = webhooks.body_of(row), int(time.time())
    signatures = [webhooks.sign(secret, row.id, timestamp, body) for secret in secrets]
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "espalier-webhooks",
        "webhook-id": row.id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(signatures),
    }
    return _Message(delivery_id=row.id, url=webhook.url, body=body, headers=headers)


def _send(message: _Message, settings: Settings) -> _Result:
    try:
        place = outbound.parse(message.url, settings.webhook_private_hosts)
        status = outbound.post(place, message.body, message.headers)
    except ForbiddenUrl as error:
        return _Result(None, str(error))
    except (OSError, http.client.HTTPException) as error:
        return _Result(None, type(error).__name__)
    return _Result(status, None if 200 <= status < 300 else f"answered {status}")


def _record(session: Session, delivery_id: str, result: _Result) -> None:
    row = session.get_one(WebhookDelivery, delivery_id, with_for_update=True)
    now = database_now(session)
    row.num_attempts += 1
    row.status_code, row.error = result.status_code, result.error
    if result.error is None:
        row.status, row.ended_at, row.next_at = "delivered", now, None
        return
    logger.info("webhook delivery %s: %s", row.id, result.error)
    if result.status_code == _GONE:
        _disable(session, row)
    if result.status_code == _GONE or row.num_attempts > len(RETRIES):
        row.status, row.ended_at, row.next_at = "failed", now, None
        return
    pause = RETRIES[row.num_attempts - 1]
    row.next_at = now + pause * random.uniform(1 - _JITTER, 1 + _JITTER)


def _disable(session: Session, row: WebhookDelivery) -> None:
    webhook = session.get_one(Webhook, row.webhook_id)
    webhook.status, webhook.status_reason = "disabled", "it answered 410 Gone"


def sending(
    factory: SessionFactory, settings: Settings, master: bytes, stopped: Callable[[float], bool]
) -> None:
    """Send until `stopped(seconds)` says so: a thread of its own, since receivers may be slow."""
    while not stopped(settings.sweep_seconds):
        try:
            while deliver_due(factory, settings, master):
                if stopped(0):
                    return
        except DBAPIError as error:
            logger.warning("database is away, sending later: %s", type(error.orig).__name__)
