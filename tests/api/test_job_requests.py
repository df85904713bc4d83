"""What a job may be created with beside its recipe, and what a list of jobs is narrowed by."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

from registry import webhooks
from registry.db import SessionFactory, reading
from registry.settings import Settings
from registry.tables import WebhookDelivery
from tests.factories import SMALL_REQUEST, Holder

sqlite_only = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
HOOK = {"url": "https://example.com/hook", "events": ["job.created", "job.cancelled"]}


def make(client: TestClient, **fields: Any) -> dict[str, Any]:
    """A job of the small request and these fields."""
    answer = client.post("/v1/jobs", json={**SMALL_REQUEST, **fields})
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


# --- a webhook of its own ---------------------------------------------------------------------


def test_a_jobs_own_webhook_hears_of_that_job_alone(
    client: TestClient, factory: SessionFactory
) -> None:
    hook = make(client, webhook=HOOK)["webhook"]
    make(client)
    with reading(factory) as session:
        row = webhooks.get(session, webhook_tenant(factory, hook["id"]), hook["id"])
        sent, _ = webhooks.list_deliveries(session, row, limit=10, after=None)
    assert [one.event_type for one in sent] == ["job.created"]


def webhook_tenant(factory: SessionFactory, webhook_id: str) -> str:
    with reading(factory) as session:
        return session.get_one(webhooks.Webhook, webhook_id).tenant_id


@sqlite_only
def test_its_secret_is_shown_once_and_is_the_one_that_signs(
    client: TestClient, factory: SessionFactory, settings: Settings
) -> None:
    headers = {"Idempotency-Key": "once"}
    body = {**SMALL_REQUEST, "webhook": HOOK}
    first, again = (client.post("/v1/jobs", json=body, headers=headers).json() for _ in range(2))
    assert first["id"] == again["id"]
    assert again["webhook"] == {**first["webhook"], "secret": None}
    assert "secret" not in client.get(f"/v1/webhooks/{first['webhook']['id']}").json()
    with reading(factory) as session:
        row = session.get_one(webhooks.Webhook, first["webhook"]["id"])
        signing = webhooks.signing_secrets(row, settings.installation_secret, row.created_at)
    assert signing == [first["webhook"]["secret"]]


@sqlite_only
def test_an_address_inside_is_refused_naming_the_field(client: TestClient) -> None:
    body = {**SMALL_REQUEST, "webhook": {**HOOK, "url": "https://localhost/hook"}}
    answer = client.post("/v1/jobs", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "url_forbidden")
    assert answer.json()["param"] == "webhook.url"
    assert client.get("/v1/jobs").json()["data"] == []


def test_it_goes_with_the_job(client: TestClient, factory: SessionFactory) -> None:
    made = make(client, webhook=HOOK)
    client.post(f"/v1/jobs/{made['id']}/cancel")
    assert client.delete(f"/v1/jobs/{made['id']}").status_code == 204
    assert client.get("/v1/webhooks").json()["data"] == []
    with reading(factory) as session:
        assert session.query(WebhookDelivery).count() == 2


# --- lists ------------------------------------------------------------------------------------


@pytest.fixture
def named(client: TestClient) -> dict[str, str]:
    """Three jobs by name."""
    rows = {
        "alpha one": {"team": "nlp", "stage": "a b"},
        "Alpha 100%": {"team": "vision"},
        "beta": {"team": "nlp", 'équipe "a"': "é"},
    }
    return {name: make(client, name=name, metadata=labels)["id"] for name, labels in rows.items()}


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("q=alpha", {"alpha one", "Alpha 100%"}),
        ("q=100%25", {"Alpha 100%"}),
        ("q=%25", {"Alpha 100%"}),
        ("metadata[team]=nlp", {"alpha one", "beta"}),
        ("metadata[team]=nlp&metadata[stage]=a%20b", {"alpha one"}),
        ("metadata[team]=nlp&q=beta", {"beta"}),
        ("metadata[nothing]=nlp", set()),
        ("metadata[te%22am]=nlp", set()),
        ("metadata[%C3%A9quipe%20%22a%22]=%C3%A9", {"beta"}),
    ],
)
def test_a_list_is_narrowed_by_name_and_labels(
    client: TestClient, named: dict[str, str], query: str, expected: set[str]
) -> None:
    answer = client.get(f"/v1/jobs?{query}")
    assert answer.status_code == 200, answer.text
    assert {job["name"] for job in answer.json()["data"]} == expected


@sqlite_only
@pytest.mark.parametrize(
    "query", ["metadata=nlp", "metadata[]=x", "labels[team]=nlp", "metadata[a%00]=x"]
)
def test_a_misspelt_label_filter_is_refused(client: TestClient, query: str) -> None:
    assert client.get(f"/v1/jobs?{query}").status_code == 422


@sqlite_only
def test_only_lists_of_jobs_take_labels(client: TestClient, stranger: Holder) -> None:
    assert client.get("/v1/files?metadata[team]=nlp").status_code == 422
