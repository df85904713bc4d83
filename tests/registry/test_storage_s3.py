"""The artifact store on S3, against a server that speaks it."""

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest
from moto.server import ThreadedMotoServer

from registry.errors import ArtifactsAway, BlobCorrupt, BlobNotFound
from registry.storage import StoredBlob, store_for
from registry.storage_s3 import S3Store

CONTENT = bytes(range(256)) * 40_000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
# The least that S3 allows for all parts but the last.
PART_BYTES = 5 << 20


@pytest.fixture(scope="module")
def endpoint(no_litter: None) -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def client(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name, value in {
        "AWS_ENDPOINT_URL_S3": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "NO_PROXY": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    httpx.post(f"{endpoint}/moto-api/reset", trust_env=False)
    client = boto3.client("s3")
    client.create_bucket(Bucket="artifacts")
    return client


@pytest.fixture
def store(client: Any) -> S3Store:
    return S3Store(client, "artifacts", "espalier", part_bytes=PART_BYTES)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(CONTENT)
    return path


def test_the_url_names_bucket_and_prefix(client: Any, file: Path) -> None:
    store = store_for("s3://artifacts/some/prefix")
    assert store.put_file(file) == StoredBlob(SHA256, len(CONTENT))
    [found] = client.list_objects_v2(Bucket="artifacts")["Contents"]
    assert found["Key"] == f"some/prefix/sha256/{SHA256[:2]}/{SHA256}"


@pytest.mark.parametrize("content", [b"", b"small", CONTENT])
def test_what_is_stored_comes_back(store: S3Store, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    blob = store.put_file(path)
    assert store.put_file(path) == blob
    store.fetch(blob.sha256, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == content
    assert [(e.sha256, e.num_bytes) for e in store.entries()] == [(blob.sha256, len(content))]


@pytest.mark.parametrize(("start", "end"), [(0, None), (0, 10), (5, 6), (10_239_999, None), (7, 7)])
def test_a_range_is_exact(store: S3Store, file: Path, start: int, end: int | None) -> None:
    store.put_file(file)
    assert b"".join(store.open_range(SHA256, start, end)) == CONTENT[start:end]


def test_an_upload_that_breaks_off_leaves_nothing(
    store: S3Store, file: Path, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(client, "complete_multipart_upload", refuse)
    with pytest.raises(KeyboardInterrupt):
        store.put_file(file)
    assert not store.exists(SHA256)
    assert "Uploads" not in client.list_multipart_uploads(Bucket="artifacts")


def test_uploads_that_nobody_finished_are_discarded(store: S3Store, client: Any) -> None:
    client.create_multipart_upload(Bucket="artifacts", Key=store.key_of(SHA256))
    # The server knows no yesterday.
    assert store.discard_partial(datetime(2000, 1, 1, tzinfo=UTC)) == 0
    assert store.discard_partial(datetime.now(UTC) + timedelta(days=400 * 365)) == 1


def test_damaged_bytes_are_noticed_and_not_handed_on(
    store: S3Store, file: Path, client: Any, tmp_path: Path
) -> None:
    store.put_file(file)
    client.put_object(Bucket="artifacts", Key=store.key_of(SHA256), Body=b"other bytes")
    with pytest.raises(BlobCorrupt):
        store.fetch(SHA256, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_what_is_not_there_is_not_found(store: S3Store, tmp_path: Path) -> None:
    with pytest.raises(BlobNotFound):
        store.fetch(SHA256, tmp_path / "copy")
    assert not store.exists(SHA256)
    store.delete(SHA256)
    with pytest.raises(BlobNotFound):
        store.key_of("../../etc/passwd")


def test_a_bucket_that_does_not_exist_is_no_missing_blob(client: Any) -> None:
    with pytest.raises(ArtifactsAway):
        S3Store(client, "elsewhere").require_space(1)


def test_a_reader_is_sent_to_the_bucket(store: S3Store, file: Path) -> None:
    store.put_file(file)
    url = store.download_url(SHA256, file_name="model.safetensors")
    answer = httpx.get(url, headers={"Range": "bytes=256-511"}, trust_env=False)
    assert (answer.status_code, answer.content) == (206, bytes(range(256)))
    assert answer.headers["content-disposition"] == 'attachment; filename="model.safetensors"'
