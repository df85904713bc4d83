"""One thing of every kind, made over HTTP where it can be: what operations are tried on."""

from pathlib import Path
from typing import Any

import httpx

from registry.db import SessionFactory, transaction
from registry.storage import ArtifactStore, LocalStore
from tests.factories import (
    SMALL_REQUEST,
    Holder,
    make_checkpoint,
    make_job,
    make_steps,
    start_job,
    succeed,
)


def made(client: httpx.Client, url: str, **sent: Any) -> dict[str, Any]:
    """What a POST made."""
    answer = client.post(url, **sent)
    assert answer.status_code in (201, 202), answer.text
    body: dict[str, Any] = answer.json()
    return body


def furnish(
    client: httpx.Client,
    factory: SessionFactory,
    store: ArtifactStore,
    holder: Holder,
    directory: Path,
) -> dict[str, str]:
    """A tenant with one of everything; the path parameters that name them."""
    assert isinstance(store, LocalStore)
    with transaction(factory) as session:
        job = make_job(session, holder.tenant_id, name="furniture")
        start_job(session, job)
        make_steps(session, job, first=1, count=50)
        checkpoint = make_checkpoint(session, store, job, directory)
        succeed(session, job)
    hook = {"url": "https://example.com/", "events": ["job.failed"]}
    webhook_id = made(client, "/v1/webhooks", json=hook)["id"]
    made(client, "/v1/models", json={"name": "furniture"})
    made(client, "/v1/models/furniture/versions", json={"checkpoint": checkpoint.id})
    client.put("/v1/models/furniture/aliases/production", json={"version": 1})
    made(client, "/v1/jobs", json=SMALL_REQUEST)
    return {
        "job_id": job.id,
        "checkpoint_id": checkpoint.id,
        "path": "config.json",
        "file_id": made(client, "/v1/files?name=a.txt", content=b"text")["id"],
        "key_id": made(client, "/v1/api-keys", json={"scopes": ["jobs:read"]})["id"],
        "credential_id": made(client, "/v1/credentials", json={"secret": "hf_0123456789"})["id"],
        "webhook_id": webhook_id,
        "delivery_id": made(client, f"/v1/webhooks/{webhook_id}/test")["id"],
        "name": "furniture",
        "version": "1",
        "alias": "production",
    }
