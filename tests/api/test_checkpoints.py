"""Checkpoints and their files: conditions, ranges and digests."""

import base64
import hashlib
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from api.schemas.checkpoints import CheckpointRead
from registry.db import SessionFactory, transaction
from registry.storage import LocalStore
from registry.tables import Checkpoint, Job
from tests.factories import Holder, make_checkpoint, make_evaluation, make_job

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
CONTENT = bytes(range(256)) * 10_000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def checkpoint(
    factory: SessionFactory, holder: Holder, store: LocalStore, tmp_path: Path
) -> Checkpoint:
    """A checkpoint with a file larger than one piece, and one in a directory."""
    files = {"model.safetensors": CONTENT, "training_state/ä.json": b"{}", "empty": b""}
    with transaction(factory) as session:
        job = make_job(session, holder.tenant_id)
        return make_checkpoint(session, store, job, tmp_path, files=files)


@pytest.fixture
def url(checkpoint: Checkpoint) -> str:
    return f"/v1/checkpoints/{checkpoint.id}/files/model.safetensors"


def test_a_checkpoint_says_what_it_is(
    client: TestClient, checkpoint: Checkpoint, factory: SessionFactory
) -> None:
    with transaction(factory) as session:
        job = session.get_one(Job, checkpoint.job_id)
        make_evaluation(session, job, increment=0, stage="base", value=20.0, tokens=0)
        make_evaluation(session, job, increment=1, stage="recovered", value=25.0, tokens=9)
    read = CheckpointRead.model_validate(client.get(f"/v1/checkpoints/{checkpoint.id}").json())
    assert read.baseline_ratio == 1.25
    assert read.evaluations["perplexity"].value == 25.0
    assert client.get(f"/v1/jobs/{read.job}/checkpoints").json()["data"] == [
        read.model_dump(mode="json")
    ]
    stages = [one["stage"] for one in client.get(f"/v1/jobs/{read.job}/evaluations").json()["data"]]
    assert stages == ["base", "recovered"]


def test_every_listed_file_downloads_and_hashes_to_its_name(
    client: TestClient, checkpoint: Checkpoint
) -> None:
    files = client.get(f"/v1/checkpoints/{checkpoint.id}/files").json()["data"]
    assert len(files) == 3
    for file in files:
        content = client.get(file["url"]).content
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file["size"], file["sha256"])


def test_a_download_carries_digest_and_strong_etag(client: TestClient, url: str) -> None:
    response = client.get(url)
    assert response.content == CONTENT
    assert response.headers["etag"] == f'"{SHA256}"'
    digest = base64.b64encode(bytes.fromhex(SHA256)).decode()
    assert response.headers["repr-digest"] == f"sha-256=:{digest}:"
    assert response.headers["content-disposition"].startswith("attachment")


def test_head_is_get_without_the_body(client: TestClient, url: str) -> None:
    head, get = client.head(url), client.get(url)
    assert (head.status_code, head.content) == (200, b"")
    for name in ("content-length", "etag", "accept-ranges", "repr-digest", "content-type"):
        assert head.headers[name] == get.headers[name]


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=1048570-", 1048570, len(CONTENT)),
        ("bytes=-7", len(CONTENT) - 7, len(CONTENT)),
        ("bytes=5-99999999", 5, len(CONTENT)),
    ],
)
def test_a_range_is_a_206(client: TestClient, url: str, asked: str, start: int, end: int) -> None:
    response = client.get(url, headers={"Range": asked})
    assert (response.status_code, response.content) == (206, CONTENT[start:end])
    assert response.headers["content-range"] == f"bytes {start}-{end - 1}/{len(CONTENT)}"


def test_a_range_outside_is_a_416_problem_with_the_size(client: TestClient, url: str) -> None:
    response = client.get(url, headers={"Range": f"bytes={len(CONTENT)}-"})
    assert (response.status_code, response.json()["code"]) == (416, "range_not_satisfiable")
    assert response.headers["content-range"] == f"bytes */{len(CONTENT)}"


@pytest.mark.parametrize("asked", ["chapters=1-2", "bytes=9-1", "bytes", "bytes=a-b"])
def test_a_range_that_means_nothing_is_ignored(client: TestClient, url: str, asked: str) -> None:
    response = client.get(url, headers={"Range": asked})
    assert (response.status_code, len(response.content)) == (200, len(CONTENT))


def test_what_you_have_is_a_304(client: TestClient, url: str) -> None:
    for tag in (f'"{SHA256}"', f'"other", W/"{SHA256}"', "*"):
        response = client.get(url, headers={"If-None-Match": tag})
        assert (response.status_code, response.content) == (304, b"")
    assert client.get(url, headers={"If-None-Match": '"other"'}).status_code == 200


def test_if_range_guards_a_resumed_download(client: TestClient, url: str) -> None:
    same = client.get(url, headers={"Range": "bytes=9-", "If-Range": f'"{SHA256}"'})
    other = client.get(url, headers={"Range": "bytes=9-", "If-Range": '"other"'})
    assert (same.status_code, other.status_code) == (206, 200)


@pytest.mark.parametrize(
    "path",
    [
        "../../../../etc/passwd",
        "..%2f..%2f..%2fetc%2fpasswd",
        "%2e%2e/%2e%2e/etc/passwd",
        "/etc/passwd",
        "%2fetc%2fpasswd",
        "model.safetensors/",
        "./model.safetensors",
        "training_state/../model.safetensors",
        "training_state%2f..%2fmodel.safetensors",
        "..\\model.safetensors",
        "model.safetensors%00.json",
        "file:///etc/passwd",
        "",
    ],
)
def test_only_names_of_the_manifest_are_served(
    client: TestClient, checkpoint: Checkpoint, path: str
) -> None:
    response = client.get(f"/v1/checkpoints/{checkpoint.id}/files/{path}")
    assert response.status_code in (404, 200)
    if response.status_code == 200:
        # The client itself resolved the dots before it asked.
        assert str(response.request.url).endswith("/files/model.safetensors")


def test_files_of_a_deleted_checkpoint_are_gone(
    client: TestClient, checkpoint: Checkpoint, factory: SessionFactory, url: str
) -> None:
    with transaction(factory) as session:
        session.get_one(Checkpoint, checkpoint.id).status = "deleted"
    response = client.get(url)
    assert (response.status_code, response.json()["code"]) == (410, "checkpoint_deleted")
    assert client.get(f"/v1/checkpoints/{checkpoint.id}").json()["status"] == "deleted"


def test_a_session_cookie_downloads(
    client: TestClient, anonymous: TestClient, holder: Holder, url: str
) -> None:
    signer = anonymous.app.state.signer  # type: ignore[attr-defined]  # The application under test.
    anonymous.cookies.set("espalier_session", signer.issue(holder.key_id))
    assert anonymous.get(url).content == CONTENT
