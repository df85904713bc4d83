"""Nothing of one tenant is visible to another: a foreign id is as good as none."""

from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from registry.db import SessionFactory
from registry.storage import LocalStore
from tests.api.furniture import furnish
from tests.factories import Holder


def operations(app: FastAPI) -> list[tuple[str, str]]:
    """Every operation that names something by an id or a name."""
    return [
        (method, path)
        for path, methods in app.openapi()["paths"].items()
        for method in methods
        if "{" in path
    ]


NOBODYS = {
    "job_id": "job_0",
    "checkpoint_id": "ckpt_0",
    "path": "config.json",
    "file_id": "file_0",
    "key_id": "key_0",
    "credential_id": "cred_0",
    "webhook_id": "wh_0",
    "delivery_id": "dlv_0",
    "name": "nothing",
    "version": "1",
    "alias": "production",
}
# What these operations want before they look for anything.
_REQUESTS: dict[str, dict[str, Any]] = {
    "post /v1/models/{name}/versions": {"json": {"checkpoint": "ckpt_" + "0" * 32}},
    "put /v1/models/{name}/aliases/{alias}": {"json": {"version": 1}},
    "patch /v1/jobs/{job_id}": {"json": {"name": "x"}},
    "patch /v1/webhooks/{webhook_id}": {"json": {"status": "disabled"}},
    "patch /v1/files/{file_id}": {
        "content": b"x",
        "headers": {"Upload-Offset": "0", "Content-Type": "application/partial-upload"},
    },
}


@pytest.fixture
def ids(
    client: TestClient,
    factory: SessionFactory,
    store: LocalStore,
    holder: Holder,
    tmp_path: Path,
) -> dict[str, str]:
    """One thing of every kind, all of one tenant."""
    return furnish(client, factory, store, holder, tmp_path)


def _without_ids(response: httpx.Response, ids: list[str]) -> str:
    text = response.text.replace(response.headers["x-request-id"], "")
    for one in ids:
        text = text.replace(one, "")
    return text


def test_every_operation_on_a_foreign_id_is_a_404(
    app: FastAPI,
    anonymous: TestClient,
    ids: dict[str, str],
    stranger: Holder,
    holder: Holder,
) -> None:
    found = operations(app)
    assert len(found) >= 40
    for method, path in found:
        sent = _REQUESTS.get(f"{method} {path}", {})
        headers = {**stranger.headers, **sent.get("headers", {})}
        answers = [
            anonymous.request(method, path.format(**of), **{**sent, "headers": headers})
            for of in (ids, NOBODYS)
        ]
        assert [answer.status_code for answer in answers] == [404, 404], f"{method} {path}"
        named = [*ids.values(), *NOBODYS.values()]
        foreign, unknown = (_without_ids(answer, named) for answer in answers)
        assert foreign == unknown, f"{method} {path}"
    mine = anonymous.get(f"/v1/jobs/{ids['job_id']}", headers=holder.headers)
    assert mine.status_code == 200


def test_a_list_holds_only_the_tenants_own(
    anonymous: TestClient, stranger: Holder, job_id: str
) -> None:
    assert anonymous.get("/v1/jobs", headers=stranger.headers).json()["data"] == []


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_the_session_cookie_reads_but_does_not_write(
    app: FastAPI, anonymous: TestClient, holder: Holder, method: str, job_id: str
) -> None:
    anonymous.cookies.set("espalier_session", app.state.signer.issue(holder.key_id))
    response = anonymous.request(method, "/v1/jobs")
    assert response.status_code == (200 if method == "GET" else 401)
