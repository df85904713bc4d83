"""Webhooks: signed by the specification, tried again, seen and sent again, rotated."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from registry.db import SessionFactory, transaction
from registry.deliveries import RETRIES, deliver_due
from registry.settings import Settings
from registry.tables import WebhookDelivery
from tests.factories import SMALL_REQUEST, Holder


class Receiver(BaseHTTPRequestHandler):
    """Remembers what it is sent and answers as told."""

    received: ClassVar[list[tuple[dict[str, str], bytes]]] = []
    status: ClassVar[int] = 204

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.received.append((headers, body))
        self.send_response(self.status)
        self.send_header("Location", "http://169.254.169.254/")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing to standard error."""


@pytest.fixture
def receiver() -> Iterator[int]:
    """The port of a receiver."""
    Receiver.received, Receiver.status = [], 204
    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_port
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def settings(database_url: str, tmp_path: Path, receiver: int) -> Settings:
    return Settings(
        data_dir=tmp_path / "data",
        database_url=database_url,
        storage_reserve_bytes=0,
        webhook_private_hosts=(f"127.0.0.1:{receiver}",),
    )


@pytest.fixture
def webhook(client: TestClient, receiver: int) -> dict[str, Any]:
    """A webhook that hears of new and cancelled jobs."""
    body = {
        "url": f"http://127.0.0.1:{receiver}/hook",
        "events": ["job.created", "job.cancelled"],
    }
    answer = client.post("/v1/webhooks", json=body)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


def deliver(factory: SessionFactory, settings: Settings) -> int:
    return deliver_due(factory, settings, settings.installation_secret)


def verify(secret: str, headers: dict[str, str], body: bytes) -> bool:
    """As the specification says it (standard-webhooks, "Verifying signatures")."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    assert abs(time.time() - int(headers["webhook-timestamp"])) < 300
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    right = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    return f"v1,{right}" in headers["webhook-signature"].split(" ")


def deliveries(client: TestClient, webhook: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.get(f"/v1/webhooks/{webhook['id']}/deliveries").json()[
        "data"
    ]
    return found


def test_the_events_asked_for_arrive_signed(
    client: TestClient, webhook: dict[str, Any], factory: SessionFactory, settings: Settings
) -> None:
    job = client.post("/v1/jobs", json=SMALL_REQUEST).json()
    client.post(f"/v1/jobs/{job['id']}/cancel")
    assert deliver(factory, settings) == 2
    assert deliver(factory, settings) == 0
    told = [json.loads(body) for _, body in Receiver.received]
    assert [one["type"] for one in told] == ["job.created", "job.cancelled"]
    assert {one["data"]["job"] for one in told} == {job["id"]}
    assert all(verify(webhook["secret"], *one) for one in Receiver.received)
    assert not verify("whsec_" + "A" * 43 + "=", *Receiver.received[0])
    assert {one["status"] for one in deliveries(client, webhook)} == {"delivered"}


def test_a_failed_delivery_is_tried_again_by_the_schedule_and_then_given_up(
    client: TestClient, webhook: dict[str, Any], factory: SessionFactory, settings: Settings
) -> None:
    Receiver.status = 500
    client.post("/v1/jobs", json=SMALL_REQUEST)
    for pause in RETRIES:
        before = datetime.now(UTC)
        assert deliver(factory, settings) == 1
        [seen] = deliveries(client, webhook)
        due = datetime.fromisoformat(seen["next_at"]) - before
        assert 0.7 * pause < due < 1.3 * pause + timedelta(seconds=2)
        assert (seen["status"], seen["status_code"]) == ("pending", 500)
        make_due(factory)
    assert deliver(factory, settings) == 1
    [seen] = deliveries(client, webhook)
    assert (seen["status"], seen["attempts"]) == ("failed", len(RETRIES) + 1)
    assert len({headers["webhook-id"] for headers, _ in Receiver.received}) == 1


def make_due(factory: SessionFactory) -> None:
    with transaction(factory) as session:
        for row in session.query(WebhookDelivery):
            row.next_at = row.created_at


def test_a_given_up_delivery_can_be_sent_again(
    client: TestClient, webhook: dict[str, Any], factory: SessionFactory, settings: Settings
) -> None:
    client.post("/v1/jobs", json=SMALL_REQUEST)
    deliver(factory, settings)
    [seen] = deliveries(client, webhook)
    url = f"/v1/webhooks/{webhook['id']}/deliveries/{seen['id']}/redeliver"
    assert client.post(url).json()["status"] == "pending"
    deliver(factory, settings)
    ids = [headers["webhook-id"] for headers, _ in Receiver.received]
    assert ids == [seen["id"], seen["id"]]


@pytest.mark.parametrize("status", [301, 302, 307])
def test_redirects_are_not_followed(
    client: TestClient,
    webhook: dict[str, Any],
    factory: SessionFactory,
    settings: Settings,
    status: int,
) -> None:
    Receiver.status = status
    client.post(f"/v1/webhooks/{webhook['id']}/test")
    deliver(factory, settings)
    assert len(Receiver.received) == 1
    assert deliveries(client, webhook)[0]["error"] == f"answered {status}"


def test_a_receiver_that_is_gone_is_called_no_more(
    client: TestClient, webhook: dict[str, Any], factory: SessionFactory, settings: Settings
) -> None:
    Receiver.status = 410
    client.post(f"/v1/webhooks/{webhook['id']}/test")
    deliver(factory, settings)
    assert client.get(f"/v1/webhooks/{webhook['id']}").json()["status"] == "disabled"
    client.post("/v1/jobs", json=SMALL_REQUEST)
    assert deliver(factory, settings) == 0
    url = f"/v1/webhooks/{webhook['id']}"
    assert client.patch(url, json={"status": "enabled"}).json()["status"] == "enabled"


def test_after_a_rotation_both_secrets_verify_until_the_old_one_ends(
    client: TestClient, webhook: dict[str, Any], factory: SessionFactory, settings: Settings
) -> None:
    url = f"/v1/webhooks/{webhook['id']}"
    new = client.post(f"{url}/rotate-secret").json()["secret"]
    client.post(f"{url}/test")
    deliver(factory, settings)
    assert all(verify(secret, *Receiver.received[0]) for secret in (webhook["secret"], new))
    newest = client.post(f"{url}/rotate-secret", json={"overlap_s": 0}).json()["secret"]
    client.post(f"{url}/test")
    deliver(factory, settings)
    assert verify(newest, *Receiver.received[1])
    assert not verify(new, *Receiver.received[1])


def test_the_database_holds_no_secret(
    client: TestClient, webhook: dict[str, Any], factory: SessionFactory
) -> None:
    with transaction(factory) as session:
        kept = str(session.execute(text("SELECT * FROM webhooks")).all())
    assert webhook["secret"].removeprefix("whsec_") not in kept
    assert webhook["secret"] not in client.get("/v1/webhooks").text


@pytest.mark.parametrize(
    "url", ["http://example.com/", "https://127.0.0.1:22/", "https://localhost/", "https://a@b.c/"]
)
def test_an_address_that_may_not_be_called_is_refused(client: TestClient, url: str) -> None:
    answer = client.post("/v1/webhooks", json={"url": url, "events": ["job.failed"]})
    assert (answer.status_code, answer.json()["code"]) == (422, "url_forbidden")


def test_another_tenant_has_no_part_in_it(
    client: TestClient,
    webhook: dict[str, Any],
    stranger: Holder,
    factory: SessionFactory,
    settings: Settings,
) -> None:
    url = f"/v1/webhooks/{webhook['id']}"
    for path in ("", "/deliveries"):
        assert client.get(url + path, headers=stranger.headers).status_code == 404
    for path in ("/test", "/rotate-secret"):
        assert client.post(url + path, headers=stranger.headers).status_code == 404
    assert client.delete(url, headers=stranger.headers).status_code == 404
    client.post("/v1/jobs", json=SMALL_REQUEST, headers=stranger.headers)
    assert deliver(factory, settings) == 0


def test_a_removed_webhook_is_called_no_more(
    client: TestClient, webhook: dict[str, Any], factory: SessionFactory, settings: Settings
) -> None:
    client.post("/v1/jobs", json=SMALL_REQUEST)
    client.delete(f"/v1/webhooks/{webhook['id']}")
    deliver(factory, settings)
    assert Receiver.received == []


def test_a_webhook_is_changed_only_as_the_caller_knows_it(client: TestClient) -> None:
    wanted = {"url": "https://example.com/hook", "events": ["job.succeeded"]}
    url = client.post("/v1/webhooks", json=wanted).headers["location"]
    known = client.get(url).headers["etag"]
    assert client.get(url, headers={"If-None-Match": known}).status_code == 304
    insisting = {"If-Match": known}
    changed = client.patch(url, json={"status": "disabled"}, headers=insisting)
    assert changed.status_code == 200
    assert changed.headers["etag"] == client.get(url).headers["etag"] != known
    for refused in (
        client.patch(url, json={"status": "enabled"}, headers=insisting),
        client.delete(url, headers=insisting),
    ):
        assert (refused.status_code, refused.json()["code"]) == (412, "version_mismatch")
    assert client.delete(url, headers={"If-Match": changed.headers["etag"]}).status_code == 204
