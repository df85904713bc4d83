"""Nothing of one tenant is visible to another: a foreign id is as good as none."""

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import select

from registry.db import SessionFactory, reading
from registry.tables import Checkpoint
from tests.factories import Holder


def operations(app: FastAPI) -> list[tuple[str, str]]:
    """Every operation that names a job or a checkpoint."""
    return [
        (method, path)
        for path, methods in app.openapi()["paths"].items()
        for method in methods
        if "{" in path
    ]


def _without_ids(response: httpx.Response, ids: list[str]) -> str:
    text = response.text.replace(response.headers["x-request-id"], "")
    for one in ids:
        text = text.replace(one, "")
    return text


def test_every_operation_on_a_foreign_id_is_a_404(
    app: FastAPI,
    anonymous: TestClient,
    factory: SessionFactory,
    running_job_id: str,
    stranger: Holder,
    holder: Holder,
) -> None:
    with reading(factory) as session:
        checkpoint_id = session.scalars(select(Checkpoint.id)).one()
    ids = {"job_id": running_job_id, "checkpoint_id": checkpoint_id, "path": "config.json"}
    nobodys = {"job_id": "job_0", "checkpoint_id": "ckpt_0", "path": "config.json"}
    found = operations(app)
    assert len(found) >= 16
    for method, path in found:
        answers = [
            anonymous.request(method, path.format(**of), headers=stranger.headers)
            for of in (ids, nobodys)
        ]
        assert [answer.status_code for answer in answers] == [404, 404], f"{method} {path}"
        named = [*ids.values(), *nobodys.values()]
        foreign, unknown = (_without_ids(answer, named) for answer in answers)
        assert foreign == unknown
    assert anonymous.get(f"/v1/jobs/{running_job_id}", headers=holder.headers).status_code == 200


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
