"""The archive of a checkpoint, and URLs that need no key."""

import io
import tarfile
import time
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from api.signed_urls import sign_download
from registry import api_keys
from registry.db import SessionFactory, transaction
from registry.storage import LocalStore
from registry.tables import ApiKey, Checkpoint
from tests.factories import Holder, make_checkpoint, make_job

FILES = {
    "model.safetensors": bytes(range(256)) * 5000,
    "config.json": b"{}",
    "empty": b"",
    "a/" + "deep/" * 30 + "name.txt": b"long",
    "training_state/moments.safetensors": b"x" * 777,
}


@pytest.fixture
def checkpoint(
    factory: SessionFactory, holder: Holder, store: LocalStore, tmp_path: Path
) -> Checkpoint:
    with transaction(factory) as session:
        job = make_job(session, holder.tenant_id)
        return make_checkpoint(session, store, job, tmp_path, files=FILES)


@pytest.fixture
def url(checkpoint: Checkpoint) -> str:
    return f"/v1/checkpoints/{checkpoint.id}/archive.tar"


def test_the_archive_holds_every_file_once(client: TestClient, url: str) -> None:
    response = client.get(url, params={"training_state": True})
    assert int(response.headers["content-length"]) == len(response.content)
    with tarfile.open(fileobj=io.BytesIO(response.content)) as archive:
        members = {m.name: archive.extractfile(m) for m in archive.getmembers()}
        found = {name: file.read() for name, file in members.items() if file is not None}
    assert found == FILES


def test_the_training_state_is_left_out_unless_asked_for(client: TestClient, url: str) -> None:
    with tarfile.open(fileobj=io.BytesIO(client.get(url).content)) as archive:
        names = archive.getnames()
    assert sorted(names) == sorted(n for n in FILES if not n.startswith("training_state/"))


def test_the_archive_is_the_same_each_time(client: TestClient, url: str) -> None:
    first, second = client.get(url), client.get(url)
    assert first.content == second.content
    assert first.headers["etag"] == second.headers["etag"]


def test_two_contents_have_two_etags(client: TestClient, url: str) -> None:
    whole = client.head(url, params={"training_state": True}).headers["etag"]
    assert whole != client.head(url).headers["etag"]


@pytest.mark.parametrize(
    "wanted",
    ["0-0", "0-", "511-513", "1000000-1000100", "-1", "-1500", "100-99999999999"],
)
def test_any_range_is_that_part_of_the_whole(client: TestClient, url: str, wanted: str) -> None:
    whole = client.get(url).content
    first, _, last = wanted.partition("-")
    part = whole[-int(last) :] if not first else whole[int(first) : int(last) + 1 if last else None]
    response = client.get(url, headers={"Range": f"bytes={wanted}"})
    assert (response.status_code, response.content) == (206, part)
    start = len(whole) - len(part) if not first else int(first)
    told = f"bytes {start}-{start + len(part) - 1}/{len(whole)}"
    assert response.headers["content-range"] == told


@pytest.mark.parametrize("wanted", ["bytes=a-b", "bytes=9-2", "bytes=0-1,4-5", "lines=1-2", "x"])
def test_a_range_not_understood_is_ignored(client: TestClient, url: str, wanted: str) -> None:
    response = client.get(url, headers={"Range": wanted})
    assert (response.status_code, response.content) == (200, client.get(url).content)


@pytest.mark.parametrize("wanted", ["bytes=99999999-", "bytes=-0"])
def test_a_range_outside_says_how_long_it_is(client: TestClient, url: str, wanted: str) -> None:
    response = client.get(url, headers={"Range": wanted})
    assert response.status_code == 416
    length = client.head(url).headers["content-length"]
    assert response.headers["content-range"] == f"bytes */{length}"


def test_conditions_are_honoured(client: TestClient, url: str) -> None:
    etag = client.head(url).headers["etag"]
    assert client.get(url, headers={"If-None-Match": etag}).status_code == 304
    one = {"Range": "bytes=0-0"}
    assert client.get(url, headers={**one, "If-Range": etag}).status_code == 206
    assert client.get(url, headers={**one, "If-Range": '"other"'}).status_code == 200


def test_head_is_get_without_the_body(client: TestClient, url: str) -> None:
    head, get = client.head(url), client.get(url)
    assert (head.status_code, head.content) == (200, b"")
    for name in ("content-length", "etag", "accept-ranges", "content-type"):
        assert head.headers[name] == get.headers[name]


def test_another_tenant_finds_no_archive(client: TestClient, url: str, stranger: Holder) -> None:
    assert client.get(url, headers=stranger.headers).status_code == 404


# --- signed URLs ------------------------------------------------------------------------------


def signed(client: TestClient, checkpoint: Checkpoint, **wanted: object) -> str:
    answer = client.post(f"/v1/checkpoints/{checkpoint.id}/download-url", json=wanted)
    assert answer.status_code == 200, answer.text
    url: str = answer.json()["url"]
    return url


@pytest.mark.parametrize("path", ["model.safetensors", next(n for n in FILES if "deep" in n)])
def test_a_signed_url_downloads_a_file_without_a_key(
    client: TestClient, anonymous: TestClient, checkpoint: Checkpoint, path: str
) -> None:
    url = signed(client, checkpoint, path=path)
    assert anonymous.get(url).content == FILES[path]
    assert anonymous.head(url).status_code == 200
    assert anonymous.get(url, headers={"Range": "bytes=0-1"}).content == FILES[path][:2]


def test_a_signed_url_downloads_the_archive(
    client: TestClient, anonymous: TestClient, checkpoint: Checkpoint, url: str
) -> None:
    answer = client.post(f"/v1/checkpoints/{checkpoint.id}/download-url").json()
    content = anonymous.get(answer["url"]).content
    assert content == client.get(url).content
    assert len(content) == answer["size"]


def test_a_signature_is_of_one_url_only(
    client: TestClient, anonymous: TestClient, checkpoint: Checkpoint
) -> None:
    url = signed(client, checkpoint, path="model.safetensors")
    archive = signed(client, checkpoint)
    whole = archive.replace("training_state=false", "training_state=true")
    tampered = [
        url.replace("model.safetensors", "config.json"),
        whole,
        url[:-1] + ("0" if url[-1] != "0" else "1"),
        url.replace(".", ".9", 2),
        url.split("?")[0] + "?signature=" + parse_qs(urlsplit(archive).query)["signature"][0],
    ]
    for one in tampered:
        answer = anonymous.get(one)
        assert (answer.status_code, answer.json()["code"]) == (401, "invalid_signature"), one


@pytest.mark.parametrize("signature", ["", ".", "..", "a.b.c", "key.99999999999.ä", "." * 100])
def test_what_is_no_signature_is_refused(anonymous: TestClient, url: str, signature: str) -> None:
    answer = anonymous.get(url, params={"signature": signature})
    assert (answer.status_code, answer.json()["code"]) == (401, "invalid_signature")


def test_a_signature_ends(app: FastAPI, anonymous: TestClient, url: str, holder: Holder) -> None:
    expires = int(time.time()) - 1
    over = sign_download(app.state.signer, url, {}, key_id=holder.key_id, expires=expires)
    answer = anonymous.get(over)
    assert (answer.status_code, answer.json()["code"]) == (401, "expired_signature")


def test_revoking_the_key_ends_its_urls(
    client: TestClient, anonymous: TestClient, checkpoint: Checkpoint, factory: SessionFactory
) -> None:
    url = signed(client, checkpoint)
    with transaction(factory) as session:
        key_id = urlsplit(url).query.partition("signature=")[2].partition(".")[0]
        api_keys.revoke(session, session.get_one(ApiKey, key_id))
    assert anonymous.get(url).status_code == 401


def test_a_signature_opens_no_other_operation(
    client: TestClient, anonymous: TestClient, checkpoint: Checkpoint
) -> None:
    query = urlsplit(signed(client, checkpoint)).query
    assert anonymous.get(f"/v1/checkpoints/{checkpoint.id}?{query}").status_code in (401, 422)
    assert anonymous.get(f"/v1/jobs?{query}").status_code in (401, 422)


def test_only_files_that_exist_are_signed(client: TestClient, checkpoint: Checkpoint) -> None:
    answer = client.post(
        f"/v1/checkpoints/{checkpoint.id}/download-url", json={"path": "../config.json"}
    )
    assert answer.status_code == 404
