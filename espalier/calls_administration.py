"""Requests about keys, usage, credentials, webhooks and the audit log."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import httpx

from espalier.administration import (
    ApiKey,
    ApiKeyPage,
    AuditPage,
    AuditVerification,
    Credential,
    CredentialPage,
    Delivery,
    DeliveryPage,
    Usage,
    Webhook,
    WebhookPage,
)
from espalier.calls import Call, nothing, once, reading

# --- keys and credentials -------------------------------------------------------------------------


def create_key(
    scopes: Sequence[str], *, name: str | None = None, expires_at: datetime | None = None
) -> Call[ApiKey]:
    """A new API key; its `secret` is shown this once."""
    ends = expires_at.isoformat() if expires_at else None
    return Call(
        method="POST",
        path="/v1/api-keys",
        read=reading(ApiKey),
        json={"scopes": list(scopes), "name": name, "expires_at": ends},
        headers=once(),
    )


def list_keys() -> Call[tuple[ApiKey, ...]]:
    """Every API key of the tenant, without secrets."""

    def read(response: httpx.Response) -> tuple[ApiKey, ...]:
        return ApiKeyPage.model_validate_json(response.content).data

    return Call(method="GET", path="/v1/api-keys", read=read)


def rotate_key(key_id: str, *, overlap_seconds: int = 0) -> Call[ApiKey]:
    """A key like that one; the old one works on for `overlap_seconds`."""
    return Call(
        method="POST",
        path=f"/v1/api-keys/{key_id}/rotate",
        read=reading(ApiKey),
        json={"overlap_s": overlap_seconds},
    )


def revoke_key(key_id: str) -> Call[None]:
    """Make a key worthless at once."""
    return Call(method="DELETE", path=f"/v1/api-keys/{key_id}", read=nothing)


def store_credential(secret: str, *, name: str | None = None) -> Call[Credential]:
    """Keep a hub token for jobs to name as `model.credential`; it is never sent back."""
    body = {"secret": secret, "name": name}
    return Call(method="POST", path="/v1/credentials", read=reading(Credential), json=body)


def list_credentials() -> Call[tuple[Credential, ...]]:
    """Every stored credential of the tenant, without secrets."""

    def read(response: httpx.Response) -> tuple[Credential, ...]:
        return CredentialPage.model_validate_json(response.content).data

    return Call(method="GET", path="/v1/credentials", read=read)


def delete_credential(credential_id: str) -> Call[None]:
    """Forget a stored credential."""
    return Call(method="DELETE", path=f"/v1/credentials/{credential_id}", read=nothing)


def usage() -> Call[Usage]:
    """What the tenant used in the last 30 days, and its quotas."""
    return Call(method="GET", path="/v1/usage", read=reading(Usage))


# --- webhooks -------------------------------------------------------------------------------------


def create_webhook(url: str, events: Sequence[str]) -> Call[Webhook]:
    """Hear of all jobs at an address; its `secret` is shown this once."""
    body = {"url": url, "events": list(events)}
    path = "/v1/webhooks"
    return Call(method="POST", path=path, read=reading(Webhook), json=body, headers=once())


def list_webhooks() -> Call[tuple[Webhook, ...]]:
    """Every webhook of the tenant, oldest first."""

    def read(response: httpx.Response) -> tuple[Webhook, ...]:
        return WebhookPage.model_validate_json(response.content).data

    return Call(method="GET", path="/v1/webhooks", read=read)


def update_webhook(webhook_id: str, changes: Mapping[str, Any]) -> Call[Webhook]:
    """Another `url`, other `events`, or the `status` enabled or disabled."""
    path = f"/v1/webhooks/{webhook_id}"
    return Call(method="PATCH", path=path, read=reading(Webhook), json=dict(changes))


def delete_webhook(webhook_id: str) -> Call[None]:
    """Call it no more."""
    return Call(method="DELETE", path=f"/v1/webhooks/{webhook_id}", read=nothing)


def rotate_webhook_secret(webhook_id: str, *, overlap_seconds: int = 86_400) -> Call[Webhook]:
    """A new secret; the old one signs beside it for `overlap_seconds`."""
    return Call(
        method="POST",
        path=f"/v1/webhooks/{webhook_id}/rotate-secret",
        read=reading(Webhook),
        json={"overlap_s": overlap_seconds},
    )


def test_webhook(webhook_id: str) -> Call[Delivery]:
    """Send a message of type `webhook.test`."""
    path = f"/v1/webhooks/{webhook_id}/test"
    return Call(method="POST", path=path, read=reading(Delivery))


def list_deliveries(
    webhook_id: str, *, limit: int = 20, after: str | None = None
) -> Call[DeliveryPage]:
    """A page of what was sent to a webhook and how it was answered, newest first."""
    path, params = f"/v1/webhooks/{webhook_id}/deliveries", {"limit": limit, "after": after}
    return Call(method="GET", path=path, read=reading(DeliveryPage), params=params)


def redeliver(webhook_id: str, delivery_id: str) -> Call[Delivery]:
    """Send a message again, under its old id."""
    path = f"/v1/webhooks/{webhook_id}/deliveries/{delivery_id}/redeliver"
    return Call(method="POST", path=path, read=reading(Delivery))


# --- audit ----------------------------------------------------------------------------------------


def list_audit(*, limit: int = 100, before: int | None = None) -> Call[AuditPage]:
    """A page of the audit log, newest first; `before` is the `seq` to go on from."""
    params = {"limit": limit, "before": before}
    return Call(method="GET", path="/v1/audit", read=reading(AuditPage), params=params)


def verify_audit() -> Call[AuditVerification]:
    """Follow the audit log's chain of hashes from its beginning."""
    return Call(method="GET", path="/v1/audit/verify", read=reading(AuditVerification))
