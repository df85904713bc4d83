"""The audit log covers every change and shows when it was tampered with."""

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import delete, text, update

from registry.db import SessionFactory, transaction
from registry.tables import AuditEntry
from tests.factories import SMALL_REQUEST, Holder


@pytest.fixture
def changes(client: TestClient, job_id: str) -> list[str]:
    """Three requests that change something, or try to."""
    client.post("/v1/jobs", json=SMALL_REQUEST)
    client.post(f"/v1/jobs/{job_id}/cancel")
    client.post(f"/v1/jobs/{job_id}/pause")
    return ["POST /v1/jobs", "POST /v1/jobs/{job_id}/cancel", "POST /v1/jobs/{job_id}/pause"]


def test_every_change_is_written_down_with_who_and_how(
    client: TestClient, changes: list[str], holder: Holder, job_id: str
) -> None:
    client.get("/v1/jobs")
    client.post("/v1/estimates", json=SMALL_REQUEST)
    entries = client.get("/v1/audit").json()["data"]
    assert [entry["action"] for entry in entries] == changes[::-1]
    assert [entry["seq"] for entry in entries] == [3, 2, 1]
    assert [entry["status"] for entry in entries] == [409, 202, 201]
    assert entries[0]["path"] == f"/v1/jobs/{job_id}/pause"
    assert {entry["key"] for entry in entries} == {holder.key_id}


def test_the_log_is_paged(client: TestClient, changes: list[str]) -> None:
    first = client.get("/v1/audit", params={"limit": 2}).json()
    rest = client.get("/v1/audit", params={"before": first["last_seq"]}).json()
    assert [entry["seq"] for entry in rest["data"]] == [1]
    assert (first["has_more"], rest["has_more"]) == (True, False)


def test_a_whole_chain_verifies(client: TestClient, changes: list[str]) -> None:
    newest = client.get("/v1/audit").json()["data"][0]
    found = client.get("/v1/audit/verify").json()
    assert (found["valid"], found["entries"], found["head"]) == (True, 3, newest["hash"])


@pytest.mark.parametrize("column", ["action", "object", "status_code", "key_id", "address"])
def test_a_changed_entry_breaks_the_chain(
    client: TestClient, changes: list[str], factory: SessionFactory, column: str
) -> None:
    with transaction(factory) as session:
        value = 200 if column == "status_code" else "other"
        session.execute(update(AuditEntry).where(AuditEntry.seq == 2).values({column: value}))
    found = client.get("/v1/audit/verify").json()
    assert (found["valid"], found["broken_at"], found["entries"]) == (False, 2, 1)


@pytest.mark.parametrize("seq", [1, 2])
def test_a_missing_entry_breaks_the_chain(
    client: TestClient, changes: list[str], factory: SessionFactory, seq: int
) -> None:
    with transaction(factory) as session:
        session.execute(delete(AuditEntry).where(AuditEntry.seq == seq))
    assert client.get("/v1/audit/verify").json()["broken_at"] == seq


def test_tenants_have_chains_of_their_own(
    client: TestClient, changes: list[str], stranger: Holder
) -> None:
    assert client.get("/v1/audit", headers=stranger.headers).json()["data"] == []


def test_every_operation_that_writes_is_audited(app: FastAPI, client: TestClient) -> None:
    expected = 0
    for path, operations in app.openapi()["paths"].items():
        for method in sorted({"post", "put", "patch", "delete"} & set(operations)):
            if path == "/v1/estimates":
                continue
            expected += 1
            client.request(method, path.replace("{", "").replace("}", ""))
    assert len(client.get("/v1/audit", params={"limit": 1000}).json()["data"]) == expected


def test_a_job_is_not_there_without_its_entry(client: TestClient, factory: SessionFactory) -> None:
    with transaction(factory) as session:
        session.execute(text("ALTER TABLE audit_log RENAME TO elsewhere"))
    refused = client.post("/v1/jobs", json=SMALL_REQUEST)
    with transaction(factory) as session:
        session.execute(text("ALTER TABLE elsewhere RENAME TO audit_log"))
    assert refused.status_code >= 500
    assert client.get("/v1/jobs").json()["data"] == []


def test_a_job_has_one_entry(client: TestClient) -> None:
    made = [client.post("/v1/jobs", json=SMALL_REQUEST).status_code for _ in range(2)]
    assert made == [201, 201]
    assert [entry["status"] for entry in client.get("/v1/audit").json()["data"]] == made


def test_bodies_and_secrets_are_not_written_down(client: TestClient) -> None:
    secret = client.post("/v1/api-keys", json={"scopes": ["admin"], "name": "canary"}).json()
    log = client.get("/v1/audit").text
    assert "canary" not in log
    assert secret["secret"] not in log
