"""A look at text before a job is made of it."""

import json
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from api.main import create_app
from api.settings import ApiSettings
from registry.settings import Settings
from tests.factories import Holder
from tests.pruning.text import make_documents
from tests.pruning.tiny import make_tiny_tokenizer

DOCUMENTS = make_documents(40)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    directory = tmp_path / "roots"
    directory.mkdir()
    return directory


@pytest.fixture
def settings(database_url: str, tmp_path: Path, root: Path) -> Settings:
    return Settings(
        data_dir=tmp_path / "data",
        database_url=database_url,
        storage_reserve_bytes=0,
        allowed_paths=(root,),
    )


@pytest.fixture
def app(settings: Settings) -> FastAPI:
    return create_app(settings, ApiSettings(hub_seconds=0))


def write(path: Path, documents: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": one}) + "\n" for one in documents))
    return path


def look(client: TestClient, data: Any, **more: Any) -> dict[str, Any]:
    answer = client.post("/v1/data/preview", json={"data": data, **more})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_domains_are_counted_with_the_models_own_tokens(client: TestClient, root: Path) -> None:
    tokenizer = make_tiny_tokenizer()
    tokenizer.save_pretrained(root / "model")
    train = [
        {
            "name": "pages",
            "source": str(write(root / "pages.jsonl", DOCUMENTS)),
            "weight": 2,
            "license": "CC BY 4.0",
        },
        {"name": "notes", "source": {"kind": "inline", "documents": DOCUMENTS[:2]}},
    ]
    found = look(client, {"train": train}, model=str(root / "model"))
    pages, notes = found["domains"]
    expected = sum(len(tokenizer(one)["input_ids"]) + 1 for one in DOCUMENTS)
    assert found["tokens_counted"]
    assert (pages["documents"], pages["tokens"]) == (40, expected)
    assert pages["bytes"] == sum(len(one.encode()) for one in DOCUMENTS)
    assert pages["rows"] == [one[:500] for one in DOCUMENTS[:3]]
    assert (pages["weight"], pages["license"], pages["complete"]) == (2, "CC BY 4.0", True)
    assert 0 < pages["held_out"] < 10
    assert notes["copies"] == 2
    assert found["documents"] == 42
    assert not any(warning.startswith("pages:") for warning in found["warnings"])
    assert "notes: no license is noted" in found["warnings"]


def test_without_a_tokenizer_tokens_are_guessed_and_it_is_said(client: TestClient) -> None:
    found = look(client, {"train": {"kind": "inline", "documents": ["word " * 100, "other"]}})
    assert not found["tokens_counted"]
    assert found["tokens"] == pytest.approx(505 / 4 + 2, abs=1)
    assert any("tokens are guessed" in warning for warning in found["warnings"])


def test_an_upload_is_looked_at(client: TestClient) -> None:
    body = "".join(json.dumps({"text": one}) + "\n" for one in DOCUMENTS).encode()
    answer = client.post("/v1/files", params={"name": "own.jsonl"}, content=body)
    found = look(client, answer.json()["id"])
    assert found["documents"] == 40


def test_what_only_a_worker_reads_is_said(client: TestClient) -> None:
    inline = {"name": "notes", "source": {"kind": "inline", "documents": DOCUMENTS[:2]}}
    found = look(client, {"train": [{"name": "web", "source": "org/text"}, inline]})
    assert [domain["name"] for domain in found["domains"]] == ["notes"]
    assert "web: only a worker reads from the hub" in found["warnings"]


def test_malformed_rows_and_copies_are_told(client: TestClient, root: Path) -> None:
    path = write(root / "odd.jsonl", [*DOCUMENTS, DOCUMENTS[0]])
    with path.open("a") as file:
        file.write('{"txt": "misnamed"}\n')
    found = look(client, str(path))
    assert found["domains"][0]["malformed"] == 1
    assert any("no field 'text' among txt" in warning for warning in found["warnings"])
    assert any("1 of 41 documents are copies" in warning for warning in found["warnings"])


def test_only_the_beginning_of_a_large_domain_is_looked_at(client: TestClient, root: Path) -> None:
    path = write(root / "large.jsonl", [f"{number} {DOCUMENTS[0]}" for number in range(2100)])
    (domain,) = look(client, str(path))["domains"]
    assert (domain["documents"], domain["complete"]) == (2000, False)


def test_a_path_outside_the_roots_is_refused(client: TestClient) -> None:
    answer = client.post("/v1/data/preview", json={"data": "/etc/passwd"})
    assert (answer.status_code, answer.json()["code"]) == (422, "path_forbidden")


def test_anothers_upload_is_refused(client: TestClient, stranger: Holder) -> None:
    made = client.post("/v1/files", params={"name": "own.txt"}, content=b"text\n")
    request = {"data": made.json()["id"]}
    answer = client.post("/v1/data/preview", json=request, headers=stranger.headers)
    assert answer.status_code == 422
