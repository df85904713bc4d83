"""API keys, rate limits, quotas, usage, and creating the same thing twice."""

from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from api.main import create_app
from api.settings import ApiSettings
from registry import leases, quotas
from registry.db import SessionFactory, transaction
from registry.quotas import Quotas
from registry.settings import Settings
from registry.tables import IdempotencyKey, Tenant
from tests.factories import SMALL_REQUEST, Holder, make_holder


def make_key(client: TestClient, **fields: Any) -> dict[str, Any]:
    answer = client.post("/v1/api-keys", json={"scopes": ["jobs:read"], **fields})
    assert answer.status_code == 201, answer.text
    key: dict[str, Any] = answer.json()
    return key


def bearer(key: dict[str, Any]) -> dict[str, str]:
    return {"Authorization": f"Bearer {key['secret']}"}


def test_a_new_key_works_and_its_secret_is_shown_once(client: TestClient) -> None:
    key = make_key(client, name="ci")
    assert client.get("/v1/jobs", headers=bearer(key)).status_code == 200
    listed = client.get("/v1/api-keys").json()["data"]
    assert key["id"] in [one["id"] for one in listed]
    assert key["secret"] not in client.get("/v1/api-keys").text
    assert "secret" not in client.get(f"/v1/api-keys/{key['id']}").json()


def test_a_key_may_do_what_its_scopes_say(client: TestClient) -> None:
    headers = bearer(make_key(client))
    answer = client.post("/v1/jobs", json=SMALL_REQUEST, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (403, "insufficient_scope")
    assert client.get("/v1/api-keys", headers=headers).status_code == 403


def test_a_key_expires(client: TestClient) -> None:
    key = make_key(client, expires_at="2020-01-01T00:00:00Z")
    answer = client.get("/v1/jobs", headers=bearer(key))
    assert (answer.status_code, answer.json()["code"]) == (401, "expired_key")


def test_a_revoked_key_is_dead_at_once(client: TestClient) -> None:
    key = make_key(client)
    for _ in range(2):
        assert client.delete(f"/v1/api-keys/{key['id']}").status_code == 204
    assert client.get("/v1/jobs", headers=bearer(key)).status_code == 401


@pytest.mark.parametrize(("overlap", "status"), [(0, 401), (60, 200)])
def test_a_rotated_key_works_on_for_the_overlap(
    client: TestClient, overlap: int, status: int
) -> None:
    old = make_key(client, name="ci")
    answer = client.post(f"/v1/api-keys/{old['id']}/rotate", json={"overlap_s": overlap})
    new = answer.json()
    assert (answer.status_code, new["name"], new["scopes"]) == (201, "ci", ["jobs:read"])
    assert client.get("/v1/jobs", headers=bearer(new)).status_code == 200
    assert client.get("/v1/jobs", headers=bearer(old)).status_code == status


def test_a_revoked_key_cannot_be_rotated(client: TestClient) -> None:
    key = make_key(client)
    client.delete(f"/v1/api-keys/{key['id']}")
    answer = client.post(f"/v1/api-keys/{key['id']}/rotate")
    assert (answer.status_code, answer.json()["code"]) == (409, "key_not_active")


def test_another_tenant_finds_no_key(client: TestClient, stranger: Holder) -> None:
    url = f"/v1/api-keys/{make_key(client)['id']}"
    assert client.get(url, headers=stranger.headers).status_code == 404
    assert client.delete(url, headers=stranger.headers).status_code == 404
    assert client.post(f"{url}/rotate", headers=stranger.headers).status_code == 404


def test_a_key_made_twice_under_one_idempotency_key_is_one(
    client: TestClient, factory: SessionFactory
) -> None:
    headers = {"Idempotency-Key": "once"}
    first, second = (
        client.post("/v1/api-keys", json={"scopes": ["admin"]}, headers=headers) for _ in "ab"
    )
    assert (first.json()["id"], second.json()["secret"]) == (second.json()["id"], None)
    assert second.headers["idempotency-replayed"] == "true"
    with transaction(factory) as session:
        kept = session.scalars(select(IdempotencyKey)).one()
        assert first.json()["secret"] not in str(kept.response)


# --- rate limits ------------------------------------------------------------------------------


def test_a_key_that_asks_too_often_is_told_to_wait(
    settings: Settings, holder: Holder, factory: SessionFactory
) -> None:
    limits = ApiSettings(rate_limit_per_second=0.001, rate_limit_burst=3, hub_seconds=0)
    with transaction(factory) as session:
        other = make_holder(session)
    with TestClient(create_app(settings, limits), headers=holder.headers) as client:
        answers = [client.get("/v1/jobs") for _ in range(5)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
        assert [a.headers["ratelimit"].split(";")[1] for a in answers[:4]] == [
            *("r=2", "r=1", "r=0", "r=0")
        ]
        assert answers[0].headers["ratelimit-policy"] == '"key";q=3;w=3000'
        assert (answers[3].json()["code"], answers[3].json()["retryable"]) == ("rate_limited", True)
        assert int(answers[3].headers["retry-after"]) >= 1
        assert client.get("/v1/jobs", headers=other.headers).status_code == 200
        assert client.get("/healthz").status_code == 200


# --- quotas and usage -------------------------------------------------------------------------


def limit(factory: SessionFactory, holder: Holder, **limits: int) -> None:
    with transaction(factory) as session:
        quotas.set_quotas(session.get_one(Tenant, holder.tenant_id), Quotas(**limits))


def test_no_more_jobs_wait_than_the_quota_allows(
    client: TestClient, factory: SessionFactory, holder: Holder
) -> None:
    limit(factory, holder, max_queued=2)
    answers = [client.post("/v1/jobs", json=SMALL_REQUEST) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [201, 201, 429]
    assert (answers[2].json()["code"], answers[2].headers["retry-after"]) == ("quota_jobs", "60")
    client.post(f"/v1/jobs/{answers[0].json()['id']}/cancel")
    assert client.post("/v1/jobs", json=SMALL_REQUEST).status_code == 201


def test_no_more_jobs_run_than_the_quota_allows(
    client: TestClient, factory: SessionFactory, holder: Holder
) -> None:
    limit(factory, holder, max_running=1)
    ids = [client.post("/v1/jobs", json=SMALL_REQUEST).json()["id"] for _ in range(2)]
    taken = []
    for job_id in ids:
        with transaction(factory) as session:
            taken.append(leases.acquire(session, job_id, "cpu0@test", 60) is not None)
    assert taken == [True, False]


def test_no_more_is_stored_than_the_quota_allows(
    client: TestClient, factory: SessionFactory, holder: Holder
) -> None:
    limit(factory, holder, storage_bytes=100)
    sent = {"params": {"name": "a.txt"}, "content": b"x" * 60}
    assert client.post("/v1/files", **sent).status_code == 201  # type: ignore[arg-type]
    refused = client.post("/v1/files", **sent)  # type: ignore[arg-type]
    assert (refused.status_code, refused.json()["code"]) == (429, "quota_storage")


def test_usage_counts_jobs_storage_and_limits(
    client: TestClient, factory: SessionFactory, holder: Holder, running_job_id: str
) -> None:
    limit(factory, holder, max_running=5)
    client.post("/v1/jobs", json=SMALL_REQUEST)
    found = client.get("/v1/usage").json()
    assert found["jobs"] == {"running": 1, "queued": 1}
    assert (found["queued_now"], found["running_now"]) == (1, 1)
    assert found["tokens"] == 50 * 4096
    assert found["storage_bytes_now"] > 1_000_000
    assert found["quotas"] == {"max_queued": None, "max_running": 5, "storage_bytes": None}
    before = client.get("/v1/usage", params={"until": "2020-01-01T00:00:00Z"}).json()
    assert (before["jobs"], before["tokens"]) == ({}, 0)


def test_usage_shows_nothing_of_other_tenants(
    client: TestClient, running_job_id: str, stranger: Holder
) -> None:
    found = client.get("/v1/usage", headers=stranger.headers).json()
    assert (found["jobs"], found["storage_bytes_now"]) == ({}, 0)
