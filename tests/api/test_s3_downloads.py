"""Downloads where the artifacts lie on S3: the client is sent there."""

from collections.abc import Iterator
from pathlib import Path

import boto3
import httpx
import pytest
from fastapi.testclient import TestClient
from moto.server import ThreadedMotoServer

from registry.db import SessionFactory, transaction
from registry.settings import Settings
from registry.storage import store_for
from tests.factories import Holder, make_checkpoint, make_job, start_job

CONTENT = bytes(range(256)) * 16


@pytest.fixture
def bucket(no_litter: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL_S3": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket="artifacts")
    yield "s3://artifacts/espalier"
    server.stop()


@pytest.fixture
def settings(settings: Settings, bucket: str) -> Settings:
    return settings.model_copy(update={"artifacts_url": bucket})


@pytest.fixture
def url(settings: Settings, factory: SessionFactory, holder: Holder, tmp_path: Path) -> str:
    with transaction(factory) as session:
        job = make_job(session, holder.tenant_id)
        start_job(session, job)
        store = store_for(settings.artifacts_url)
        files = {"model.safetensors": CONTENT}
        checkpoint = make_checkpoint(session, store, job, tmp_path, files=files)  # type: ignore[arg-type]
        return f"/v1/checkpoints/{checkpoint.id}/files/model.safetensors"


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_download_is_sent_to_the_bucket(client: TestClient, url: str) -> None:
    sent = client.get(url)
    assert sent.status_code == 307
    got = httpx.get(sent.headers["location"], headers={"Range": "bytes=5-9"}, trust_env=False)
    assert (got.status_code, got.content) == (206, CONTENT[5:10])
    described = client.head(url)
    assert (described.status_code, described.headers["content-length"]) == (200, str(len(CONTENT)))
    etag = described.headers["etag"]
    assert client.get(url, headers={"If-None-Match": etag}).status_code == 304


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_an_uploaded_file_comes_from_the_bucket_too(client: TestClient, bucket: str) -> None:
    made = client.post("/v1/files?name=a.txt", content=CONTENT).json()
    sent = client.get(f"/v1/files/{made['id']}/content")
    assert sent.status_code == 307
    assert httpx.get(sent.headers["location"], trust_env=False).content == CONTENT


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_whole_archive_is_read_from_the_bucket(client: TestClient, url: str) -> None:
    archive = client.get(url.partition("/files/")[0] + "/archive.tar")
    assert archive.status_code == 200
    assert CONTENT in archive.content
