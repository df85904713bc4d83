"""Creating, listing, reading and steering jobs over HTTP."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import event, func, select

from api.main import create_app
from api.schemas.jobs import JobRead
from registry.db import SessionFactory, transaction
from registry.settings import Settings
from registry.tables import Job, OutboxMessage
from tests.factories import SMALL_REQUEST, Holder, make_job


def test_three_fields_make_a_queued_job(client: TestClient, factory: SessionFactory) -> None:
    body = {"model": "org/m@abc", "target": "100M", "data": "org/d:cfg"}
    response = client.post("/v1/jobs", json=body)
    assert response.status_code == 201, response.text
    job = JobRead.model_validate(response.json())
    assert response.headers["location"] == f"/v1/jobs/{job.id}" == job.links.self
    assert (job.status, job.spec, job.queue.position) == ("queued", body, 1)
    recipe: Any = job.resolved["recipe"]
    assert recipe["model"]["revision"] == "abc"
    assert recipe["target"]["num_parameters"] == 100_000_000
    assert [change.status for change in job.status_transitions] == ["queued"]
    with transaction(factory) as session:
        assert session.scalar(select(func.count()).select_from(OutboxMessage)) == 1


def test_what_is_created_is_what_is_read(client: TestClient) -> None:
    extra = {"name": "n", "metadata": {"team": "nlp"}, "limits": {"max_attempts": 2}, "priority": 3}
    created = client.post("/v1/jobs", json={**SMALL_REQUEST, **extra})
    assert created.status_code == 201, created.text
    read = client.get(created.headers["location"])
    assert read.json() == created.json()
    assert read.headers["etag"] == created.headers["etag"] == '"v1"'
    assert (read.json()["metadata"], read.json()["max_attempts"]) == ({"team": "nlp"}, 2)


def test_a_dry_run_resolves_and_stores_nothing(client: TestClient) -> None:
    response = client.post("/v1/jobs?dry_run=true", json=SMALL_REQUEST)
    assert response.status_code == 200
    assert response.json()["resolved"]["method"] == "espalier"
    assert client.get("/v1/jobs").json()["data"] == []


def test_a_commit_that_fails_is_not_a_201(settings: Settings, holder: Holder) -> None:
    app = create_app(settings)

    def refuse(_connection: object) -> None:
        raise RuntimeError("no commit today")

    event.listen(app.state.engine, "commit", refuse)
    with TestClient(app, headers=holder.headers, raise_server_exceptions=False) as client:
        response = client.post("/v1/jobs", json=SMALL_REQUEST)
    assert response.status_code == 500


def test_one_idempotency_key_makes_one_job(client: TestClient) -> None:
    headers = {"Idempotency-Key": "once"}
    first = client.post("/v1/jobs", json=SMALL_REQUEST, headers=headers)
    again = client.post("/v1/jobs", json=SMALL_REQUEST, headers=headers)
    assert (again.status_code, again.json()) == (201, first.json())
    assert again.headers["idempotency-replayed"] == "true"
    assert len(client.get("/v1/jobs").json()["data"]) == 1
    other = client.post("/v1/jobs", json={**SMALL_REQUEST, "seed": 1}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reuse")


def test_a_path_outside_the_roots_is_refused(client: TestClient, tmp_path: Path) -> None:
    body = {**SMALL_REQUEST, "model": {"source": "path", "path": str(tmp_path)}}
    response = client.post("/v1/jobs", json=body)
    assert (response.status_code, response.json()["code"]) == (422, "path_forbidden")
    assert response.json()["param"] == "model.path"


@pytest.mark.parametrize("name", ["inside", "inside/../../outside", "link"])
def test_a_path_is_judged_with_its_links_followed(
    settings: Settings, holder: Holder, tmp_path: Path, name: str
) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "inside").mkdir(parents=True)
    outside.mkdir()
    (root / "link").symlink_to(outside)
    app = create_app(settings.model_copy(update={"allowed_paths": (root,)}))
    body = {**SMALL_REQUEST, "data": {"train": {"kind": "path", "path": f"{root}/{name}"}}}
    with TestClient(app, headers=holder.headers) as client:
        response = client.post("/v1/jobs", json=body)
    assert response.status_code == (201 if name == "inside" else 422), response.text
    if name != "inside":
        assert response.json()["allowed_roots"] == [str(root)]


def test_pages_cover_every_job_once_while_jobs_are_added(
    client: TestClient, factory: SessionFactory, holder: Holder
) -> None:
    with transaction(factory) as session:
        made = [make_job(session, holder.tenant_id).id for _ in range(5)]
    seen: list[str] = []
    after = ""
    while True:
        page = client.get(f"/v1/jobs?limit=2{after}").json()
        seen += [job["id"] for job in page["data"]]
        if not page["has_more"]:
            break
        after = f"&after={page['last_id']}"
        client.post("/v1/jobs", json=SMALL_REQUEST)
    assert seen == made[::-1]


def test_a_list_is_narrowed_by_status_and_model(
    client: TestClient, factory: SessionFactory, holder: Holder
) -> None:
    with transaction(factory) as session:
        other = make_job(session, holder.tenant_id, request={"model": "org/other"}).id
        tiny = make_job(session, holder.tenant_id).id
    client.post(f"/v1/jobs/{tiny}/cancel")
    found = client.get("/v1/jobs?status=cancelled&status=failed").json()["data"]
    assert [job["id"] for job in found] == [tiny]
    found = client.get("/v1/jobs", params={"model": "org/other"}).json()["data"]
    assert [job["id"] for job in found] == [other]


def test_a_cursor_of_another_list_is_a_400(client: TestClient, stranger: Holder) -> None:
    theirs = client.post("/v1/jobs", json=SMALL_REQUEST, headers=stranger.headers).json()["id"]
    response = client.get(f"/v1/jobs?after={theirs}")
    assert (response.status_code, response.json()["code"]) == (400, "bad_cursor")


def test_an_unchanged_job_is_a_304(client: TestClient, job_id: str) -> None:
    etag = client.get(f"/v1/jobs/{job_id}").headers["etag"]
    again = client.get(f"/v1/jobs/{job_id}", headers={"If-None-Match": etag})
    assert (again.status_code, again.content) == (304, b"")
    client.post(f"/v1/jobs/{job_id}/pause")
    changed = client.get(f"/v1/jobs/{job_id}", headers={"If-None-Match": etag})
    assert changed.status_code == 200


def test_a_long_poll_answers_when_the_job_changes(
    client: TestClient, factory: SessionFactory, job_id: str
) -> None:
    def change() -> None:
        with transaction(factory) as session:
            session.get_one(Job, job_id).version += 1

    timer = threading.Timer(0.3, change)
    timer.start()
    begun = time.monotonic()
    response = client.get(f"/v1/jobs/{job_id}?wait=20&if_version=1")
    timer.join()
    assert response.json()["version"] == 2
    assert 0.25 < time.monotonic() - begun < 10


def test_a_long_poll_ends_without_a_change(client: TestClient, job_id: str) -> None:
    response = client.get(f"/v1/jobs/{job_id}?wait=0.1&if_version=1")
    assert (response.status_code, response.json()["version"]) == (200, 1)


def test_pause_resume_cancel_retry_and_delete(client: TestClient, job_id: str) -> None:
    for action, status in (
        ("pause", "paused"),
        ("pause", "paused"),
        ("resume", "queued"),
        ("cancel", "cancelled"),
        ("cancel", "cancelled"),
        ("retry", "queued"),
        ("cancel", "cancelled"),
    ):
        response = client.post(f"/v1/jobs/{job_id}/{action}")
        assert (response.status_code, response.json()["status"]) == (202, status)
    assert client.delete(f"/v1/jobs/{job_id}").status_code == 204
    assert client.get(f"/v1/jobs/{job_id}").status_code == 404


def test_what_the_state_forbids_is_a_409_with_what_it_allows(
    client: TestClient, job_id: str
) -> None:
    response = client.post(f"/v1/jobs/{job_id}/retry")
    assert response.status_code == 202, "a queued job is what retry asks for"
    response = client.delete(f"/v1/jobs/{job_id}")
    assert (response.status_code, response.json()["code"]) == (409, "invalid_state")
    assert response.json()["allowed_actions"] == ["cancel", "pause"]


def test_pausing_at_the_latest_needs_a_checkpoint(
    client: TestClient, running_job_id: str, factory: SessionFactory
) -> None:
    with transaction(factory) as session:
        session.get_one(Job, running_job_id).head_checkpoint_id = None
    body = {"checkpoint": "latest"}
    assert client.post(f"/v1/jobs/{running_job_id}/pause", json=body).status_code == 409
    assert client.post(f"/v1/jobs/{running_job_id}/pause").json()["status"] == "pausing"


def test_a_running_job_shows_its_progress(client: TestClient, running_job_id: str) -> None:
    job = JobRead.model_validate(client.get(f"/v1/jobs/{running_job_id}").json())
    assert job.progress.fraction == pytest.approx(50 * 4096 / 300_000)
    assert job.progress.params_start == 134_515_008
    assert job.worker is not None
    assert job.worker.id == "cpu0@test"
    assert [change.status for change in job.status_transitions] == ["queued", "running"]


# --- changing ---------------------------------------------------------------------------------


def test_a_job_is_changed_in_what_describes_it(client: TestClient, job_id: str) -> None:
    before = client.get(f"/v1/jobs/{job_id}").json()
    changes = {"name": "new", "metadata": {"a": "b"}, "priority": 5, "limits": {"max_attempts": 2}}
    answer = client.patch(f"/v1/jobs/{job_id}", json=changes)
    after = answer.json()
    assert answer.status_code == 200
    assert (after["name"], after["metadata"], after["priority"]) == ("new", {"a": "b"}, 5)
    assert (after["max_attempts"], after["deadline_at"]) == (2, None)
    assert after["version"] > before["version"]
    assert after["resolved"] == before["resolved"]
    assert client.get(f"/v1/jobs/{job_id}/events").json()["data"][-1]["type"] == "job.updated"


def test_what_is_absent_stays(client: TestClient, job_id: str) -> None:
    client.patch(f"/v1/jobs/{job_id}", json={"priority": 5})
    after = client.patch(f"/v1/jobs/{job_id}", json={"limits": {"max_runtime_s": 60}}).json()
    assert (after["name"], after["priority"], after["max_attempts"]) == ("tiny", 5, 8)
    assert after["deadline_at"] is not None


def test_a_change_may_insist_on_the_version_it_knows(client: TestClient, job_id: str) -> None:
    url = f"/v1/jobs/{job_id}"
    etag = client.get(url).headers["etag"]
    assert client.patch(url, json={"name": "a"}, headers={"If-Match": etag}).status_code == 200
    late = client.patch(url, json={"name": "b"}, headers={"If-Match": etag})
    assert (late.status_code, late.json()["code"]) == (412, "version_mismatch")
    assert client.get(url).json()["name"] == "a"


def test_the_recipe_of_a_job_cannot_be_changed(client: TestClient, job_id: str) -> None:
    assert client.patch(f"/v1/jobs/{job_id}", json={"target": "50%"}).status_code == 422


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_steering_may_insist_on_the_version_it_knows(client: TestClient, job_id: str) -> None:
    etag = client.get(f"/v1/jobs/{job_id}").headers["etag"]
    paused = client.post(f"/v1/jobs/{job_id}/pause", headers={"If-Match": etag})
    assert paused.status_code == 202
    for method, action in (
        ("POST", "/resume"),
        ("POST", "/cancel"),
        ("POST", "/retry"),
        ("DELETE", ""),
    ):
        refused = client.request(method, f"/v1/jobs/{job_id}{action}", headers={"If-Match": etag})
        assert (refused.status_code, refused.json()["code"]) == (412, "version_mismatch"), action
    assert client.get(f"/v1/jobs/{job_id}").json()["status"] == "paused"
