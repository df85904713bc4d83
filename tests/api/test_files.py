"""Uploads: whole, as a form, in parts that survive a break; and what jobs make of them."""

import hashlib
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from api.main import create_app
from api.settings import ApiSettings
from registry import garbage, jobs
from registry.db import SessionFactory, database_now, transaction
from registry.files import part_path
from registry.leases import acquire
from registry.settings import Settings
from registry.storage import LocalStore
from registry.sweep import sweep
from tests.factories import Holder
from worker.uploads import drop_uploads, localise_uploads
from worker.workplace import Workplace, identify

TEXT = b'{"text": "Some words to prune by."}\n' * 5000
SHA256 = hashlib.sha256(TEXT).hexdigest()


def upload(client: TestClient, name: str = "corpus.jsonl", **query: Any) -> dict[str, Any]:
    answer = client.post("/v1/files", params={"name": name, **query}, content=TEXT)
    assert answer.status_code == 201, answer.text
    body: dict[str, Any] = answer.json()
    return body


def test_a_file_is_sent_as_the_body(client: TestClient) -> None:
    file = upload(client)
    assert (file["status"], file["size"], file["offset"]) == ("ready", len(TEXT), len(TEXT))
    assert file["sha256"] == SHA256
    assert client.get(f"/v1/files/{file['id']}").json() == file
    assert client.get(f"/v1/files/{file['id']}/content").content == TEXT
    assert [one["id"] for one in client.get("/v1/files").json()["data"]] == [file["id"]]


def test_a_file_is_sent_as_a_form(client: TestClient) -> None:
    answer = client.post("/v1/files", files={"file": ("C:\\data\\corpus.txt", TEXT)})
    assert (answer.status_code, answer.json()["name"]) == (201, "corpus.txt")
    assert answer.json()["sha256"] == SHA256


def test_a_digest_that_was_announced_is_checked(client: TestClient) -> None:
    upload(client, sha256=SHA256)
    answer = client.post("/v1/files", params={"name": "a.txt", "sha256": "0" * 64}, content=TEXT)
    assert (answer.status_code, answer.json()["code"]) == (422, "checksum_mismatch")


def test_an_upload_goes_on_where_it_broke(client: TestClient) -> None:
    begun = client.post(
        "/v1/files",
        params={"name": "corpus.jsonl", "sha256": SHA256},
        headers={"Upload-Complete": "?0", "Upload-Length": str(len(TEXT))},
        content=TEXT[:1000],
    )
    assert (begun.status_code, begun.headers["upload-offset"]) == (201, "1000")
    url = begun.headers["location"]
    head = client.head(url)
    assert (head.headers["upload-offset"], head.headers["upload-complete"]) == ("1000", "?0")
    wrong = send(client, url, 900, TEXT[900:])
    assert (wrong.status_code, wrong.headers["upload-offset"]) == (409, "1000")
    assert send(client, url, 1000, TEXT[1000:2000]).json()["status"] == "uploading"
    done = send(client, url, 2000, TEXT[2000:])
    assert (done.status_code, done.json()["status"]) == (200, "ready")
    assert client.get(f"{url}/content").content == TEXT
    assert send(client, url, len(TEXT), b"more").json()["code"] == "upload_complete"


def send(client: TestClient, url: str, offset: int, part: bytes, **headers: str) -> Any:
    said = {"Upload-Offset": str(offset), "Content-Type": "application/partial-upload", **headers}
    return client.patch(url, headers=said, content=part)


def test_an_upload_of_unknown_length_ends_when_it_says_so(client: TestClient) -> None:
    begun = client.post(
        "/v1/files", params={"name": "a.txt"}, headers={"Upload-Complete": "?0"}, content=b""
    )
    url = begun.headers["location"]
    assert send(client, url, 0, b"one ").json()["status"] == "uploading"
    ended = send(client, url, 4, b"two", **{"Upload-Complete": "?1"})
    assert (ended.json()["status"], ended.json()["size"]) == ("ready", 7)


def test_an_upload_under_way_is_there_but_not_to_be_read(client: TestClient) -> None:
    begun = client.post(
        "/v1/files", params={"name": "a.txt"}, headers={"Upload-Complete": "?0"}, content=b"one "
    )
    url = begun.headers["Location"]
    early = client.get(f"{url}/content")
    assert (early.status_code, early.json()["code"]) == (409, "invalid_state")
    send(client, url, 4, b"two", **{"Upload-Complete": "?1"})
    assert client.get(f"{url}/content").content == b"one two"


def test_more_than_was_announced_is_refused(client: TestClient) -> None:
    begun = client.post(
        "/v1/files",
        params={"name": "a.txt"},
        headers={"Upload-Complete": "?0", "Upload-Length": "4"},
        content=b"",
    )
    assert send(client, begun.headers["location"], 0, b"12345").status_code == 422


@pytest.mark.parametrize("length", [None, "5000"])
def test_an_upload_over_the_limit_is_refused(
    settings: Settings, holder: Holder, length: str | None
) -> None:
    app = create_app(settings, ApiSettings(max_upload_bytes=1000, hub_seconds=0))
    headers = {} if length is None else {"Upload-Length": length, "Upload-Complete": "?0"}
    content = b"x" * 5000 if length is None else b""
    with TestClient(app, headers=holder.headers) as client:
        answer = client.post(
            "/v1/files", params={"name": "a.txt"}, headers=headers, content=content
        )
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")


NAMES = [
    "../a.txt",
    "a/b.txt",
    "/etc/a.txt",
    ".txt",
    "a.exe",
    "a.txt\0.exe",
    "a\n.txt",
    "-a.txt",
    "",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_is_none_is_refused(client: TestClient, name: str) -> None:
    assert client.post("/v1/files", params={"name": name}, content=TEXT).status_code == 422


def test_another_tenant_finds_no_file(client: TestClient, stranger: Holder) -> None:
    file = upload(client)
    url = f"/v1/files/{file['id']}"
    said = {**stranger.headers, "Upload-Offset": "0", "Content-Type": "application/partial-upload"}
    answers = [
        client.get(url, headers=stranger.headers),
        client.get(f"{url}/content", headers=stranger.headers),
        client.delete(url, headers=stranger.headers),
        client.patch(url, headers=said, content=b"x"),
        client.get("/v1/files", params={"after": file["id"]}, headers=stranger.headers),
    ]
    assert [answer.status_code for answer in answers] == [404, 404, 404, 404, 400]
    job = client.post("/v1/jobs", json=request_of(file["id"]), headers=stranger.headers)
    assert (job.status_code, job.json()["code"]) == (422, "file_not_usable")


# --- jobs that read them ----------------------------------------------------------------------


def request_of(data: Any) -> dict[str, Any]:
    return {"model": "org/tiny", "target": "30%", "data": data}


def test_a_job_names_a_file_by_its_id(client: TestClient) -> None:
    file = upload(client)
    job = client.post("/v1/jobs", json=request_of(file["id"])).json()
    source = job["resolved"]["recipe"]["data"]["train"][0]["source"]
    assert (source["kind"], source["file"]) == ("upload", file["id"])


def test_a_file_that_is_not_whole_or_not_there_is_refused_at_submission(
    client: TestClient,
) -> None:
    begun = client.post(
        "/v1/files", params={"name": "a.txt"}, headers={"Upload-Complete": "?0"}, content=b"x"
    )
    for file_id in (begun.json()["id"], "file_" + "0" * 32):
        answer = client.post("/v1/jobs", json=request_of(file_id))
        assert (answer.status_code, answer.json()["code"]) == (422, "file_not_usable")
        assert answer.json()["param"] == "data.train.0.source.file"


def test_a_file_is_kept_while_a_job_needs_it(client: TestClient) -> None:
    file = upload(client)
    job = client.post("/v1/jobs", json=request_of(file["id"])).json()
    refused = client.delete(f"/v1/files/{file['id']}")
    assert (refused.status_code, refused.json()["code"]) == (409, "file_in_use")
    client.post(f"/v1/jobs/{job['id']}/cancel")
    assert client.delete(f"/v1/files/{file['id']}").status_code == 204
    assert client.get(f"/v1/files/{file['id']}").status_code == 404


def test_a_deleted_files_bytes_are_collected(
    client: TestClient, factory: SessionFactory, store: LocalStore
) -> None:
    file = upload(client)
    garbage.collect(factory, store)
    assert store.exists(SHA256)
    client.delete(f"/v1/files/{file['id']}")
    garbage.collect(factory, store)
    assert not store.exists(SHA256)


def test_the_worker_finds_the_file_as_a_path(
    client: TestClient, settings: Settings, factory: SessionFactory, store: LocalStore
) -> None:
    file = upload(client)
    data = {"train": file["id"], "evaluation": file["id"]}
    job_id = client.post("/v1/jobs", json=request_of(data)).json()["id"]
    workplace = Workplace(
        settings=settings, factory=factory, store=store, identity=identify(settings)
    )
    with transaction(factory) as session:
        lease = acquire(session, job_id, "cpu0@test", 60)
    assert lease is not None
    recipe = localise_uploads(workplace, lease)
    source = recipe["data"]["train"][0]["source"]
    path = Path(source["path"])
    assert (source["kind"], path.name, path.read_bytes()) == ("path", "corpus.jsonl", TEXT)
    assert recipe["data"]["evaluation"] == source
    assert json.dumps(localise_uploads(workplace, lease)) == json.dumps(recipe)
    drop_uploads(workplace, job_id)
    assert path.exists(), "the job has not ended"
    with transaction(factory) as session:
        job = jobs.lock(session, job_id)
        jobs.request_cancel(session, job)
        job.fence += 1
        jobs.transition(session, job, jobs.JobStatus.CANCELLED)
    drop_uploads(workplace, job_id)
    assert not path.exists()


def test_an_upload_that_was_abandoned_is_given_up(
    client: TestClient, factory: SessionFactory, settings: Settings
) -> None:
    begun = {"Upload-Complete": "?0", "Upload-Length": "10"}
    left = client.post("/v1/files?name=a.txt", content=b"text", headers=begun).json()["id"]
    whole = client.post("/v1/files?name=b.txt", content=b"text").json()["id"]
    part = part_path(settings.data_dir, left)
    assert part.read_bytes() == b"text"
    with transaction(factory) as session:
        later = database_now(session) + timedelta(hours=settings.upload_hours)
        assert sweep(session, settings, later).purged >= 1
    assert client.get(f"/v1/files/{left}").status_code == 404
    assert client.get(f"/v1/files/{whole}").status_code == 200
    assert not part.exists()


def test_a_form_has_nothing_but_the_file(client: TestClient) -> None:
    file, more = {"file": ("corpus.txt", TEXT)}, {"purpose": "pruning"}
    refused = client.post("/v1/files", files=file, data=more)
    assert (refused.status_code, refused.json()["param"]) == (422, "purpose")
