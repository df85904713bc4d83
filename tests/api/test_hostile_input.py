"""Names that lead elsewhere, and requests that grow when they are read."""

import gzip
import json
from pathlib import Path
from urllib.parse import quote

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from registry.db import SessionFactory, reading
from registry.settings import Settings
from registry.tables import Checkpoint
from tests.factories import SMALL_REQUEST

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

CANARY = "what no answer may hold"
_UP = ("../", "..\\", "..%2f", "%2e%2e/", "%2e%2e%2f", "..%5c", "..%c0%af", "..%252f", "....//")
_TARGETS = ("canary.txt", "etc/passwd", "session-secret", "espalier.db")
TRAVERSALS = [
    *(up * depth + target for up in _UP for depth in (1, 6) for target in _TARGETS[:2]),
    *(f"config.json/../{target}" for target in _TARGETS),
    *(f"./../{target}" for target in _TARGETS),
    *("/etc/passwd", "//etc/passwd", "/proc/self/environ", "\\\\host\\share", "C:\\boot.ini"),
    *("file:///etc/passwd", "~/.ssh/id_rsa", "$HOME/canary.txt", "`id`", "|id", ";id", "a\nb"),
    *(
        "config.json#../../canary.txt",
        "config.json?x=/../canary.txt",
        "..;/canary.txt",
        "\N{FULLWIDTH FULL STOP}\N{FULLWIDTH FULL STOP}/canary",
    ),
]


@pytest.fixture
def canary(settings: Settings, tmp_path: Path) -> str:
    """A file at every place that a traversal might reach."""
    for directory in (tmp_path, settings.data_dir, settings.data_dir / "artifacts"):
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "canary.txt").write_text(CANARY)
    return CANARY


def test_no_path_of_the_server_is_made_from_what_a_user_wrote(
    client: TestClient, factory: SessionFactory, running_job_id: str, canary: str
) -> None:
    with reading(factory) as session:
        checkpoint = session.scalars(select(Checkpoint.id)).one()
    secrets = (canary, "root:", "SQLite format")
    assert len(set(TRAVERSALS)) >= 60
    for name in TRAVERSALS:
        answers = [
            client.get(f"/v1/checkpoints/{checkpoint}/files/{quote(name, safe='')}"),
            client.get(f"/v1/checkpoints/{quote(name, safe='')}/files"),
            client.get(f"/v1/files/{quote(name, safe='')}/content"),
            client.get(f"/v1/models/{quote(name, safe='')}/versions"),
            client.get(f"/static/{quote(name, safe='')}"),
            client.post(f"/v1/checkpoints/{checkpoint}/download-url", json={"path": name}),
            client.post("/v1/files", params={"name": name}, content=b"x"),
            client.post("/v1/files", files={"file": (f"{name}.exe", b"x")}),
            client.post("/v1/jobs", json={**SMALL_REQUEST, "model": f"/{name}"}),
            client.post("/v1/jobs", json={**SMALL_REQUEST, "data": f"/{name}"}),
        ]
        statuses = [answer.status_code for answer in answers]
        assert all(400 <= status < 500 for status in statuses), f"{name!r}: {statuses}"
        for answer in answers:
            assert not any(secret in answer.text for secret in secrets), name


def test_an_unquoted_path_leads_to_no_file_either(
    client: TestClient, factory: SessionFactory, running_job_id: str, canary: str
) -> None:
    with reading(factory) as session:
        checkpoint = session.scalars(select(Checkpoint.id)).one()
    for name in TRAVERSALS:
        if "\n" in name:
            continue
        answer = client.get(f"/v1/checkpoints/{checkpoint}/files/{name}")
        assert canary not in answer.text, name
        assert answer.status_code in (200, 400, 404, 405, 422), name
        if answer.status_code == 200:
            assert answer.content == b"{}", name  # config.json itself, once its query is cut off


# --- what grows ---------------------------------------------------------------------------------


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_json_nested_without_end_is_refused(client: TestClient, opening: str) -> None:
    body = opening * 50_000
    answer = client.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422)
    nested = "{" + '"a":{' * 50_000 + "}" * 50_001
    again = client.post("/v1/jobs", content=nested, headers={"Content-Type": "application/json"})
    assert again.status_code in (400, 422)


def test_a_number_of_a_million_digits_is_refused(client: TestClient) -> None:
    digits = "9" * 500_000
    body = json.dumps(SMALL_REQUEST)[:-1] + f', "priority": {digits}}}'
    answer = client.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422)


def test_a_compressed_body_is_not_unpacked(client: TestClient) -> None:
    packed = gzip.compress(b" " * (64 << 20))
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    assert client.post("/v1/jobs", content=packed, headers=headers).status_code == 400


def test_a_thousand_ranges_are_answered_once(
    client: TestClient, factory: SessionFactory, running_job_id: str
) -> None:
    with reading(factory) as session:
        checkpoint = session.scalars(select(Checkpoint.id)).one()
    url = f"/v1/checkpoints/{checkpoint}/files/model.safetensors"
    whole = client.get(url)
    ranges = "bytes=" + ",".join("0-" for _ in range(1000))
    answer = client.get(url, headers={"Range": ranges})
    assert answer.status_code in (200, 206, 416)
    assert len(answer.content) <= 2 * len(whole.content)


def test_no_more_than_thirty_two_labels_are_kept(client: TestClient) -> None:
    body = {**SMALL_REQUEST, "metadata": {str(number): "x" for number in range(33)}}
    assert client.post("/v1/jobs", json=body).status_code == 422


@pytest.mark.parametrize("number", [True, "1", 1.5])
@pytest.mark.parametrize("field", ["priority", "limits.max_attempts", "schedule.num_increments"])
def test_what_is_no_whole_number_is_not_taken_for_one(
    client: TestClient, field: str, number: object
) -> None:
    part, _, name = field.rpartition(".")
    wanted = {part: {name: number}} if part else {name: number}
    refused = client.post("/v1/jobs", json={**SMALL_REQUEST, **wanted})
    assert (refused.status_code, refused.json()["param"]) == (422, field)


@pytest.mark.parametrize("written", [0, 0.0, 1, "true", "no"])
def test_what_is_no_truth_value_is_not_taken_for_one(client: TestClient, written: object) -> None:
    refused = client.post("/v1/checkpoints/ckpt_0/download-url", json={"training_state": written})
    assert (refused.status_code, refused.json()["param"]) == (422, "training_state")


def test_auto_is_taken_wherever_a_number_is(client: TestClient) -> None:
    wanted = {**SMALL_REQUEST, "priority": "auto", "schedule": {"num_increments": "auto"}}
    made = client.post("/v1/jobs", json=wanted)
    assert (made.status_code, made.json()["priority"]) == (201, 0)
