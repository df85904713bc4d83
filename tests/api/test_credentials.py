"""Stored credentials: named by jobs, given to their runs, shown to nobody."""

import json
import logging
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from pruning.recipe import Recipe
from registry import credentials, jobs
from registry.db import SessionFactory, reading, transaction
from registry.errors import CredentialNotUsable
from registry.settings import Settings
from registry.tables import Base, Credential
from tests.factories import SMALL_REQUEST, Holder

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
CANARY = "hf_canaryCanaryCanary0123456789"


@pytest.fixture
def credential_id(client: TestClient) -> str:
    """A stored token."""
    answer = client.post("/v1/credentials", json={"name": "mine", "secret": CANARY})
    assert answer.status_code == 201, answer.text
    assert client.get(answer.headers["location"]).json() == answer.json()
    found: str = answer.json()["id"]
    return found


def request_with(credential_id: str) -> dict[str, object]:
    """A job for a gated model."""
    return {
        **SMALL_REQUEST,
        "model": {"source": "hub", "id": "org/gated", "credential": credential_id},
    }


def request_for_data(credential_id: str) -> dict[str, object]:
    """A job on a gated text."""
    return {
        **SMALL_REQUEST,
        "data": {"train": {"kind": "hub", "id": "org/gated", "credential": credential_id}},
    }


def everything_stored(factory: SessionFactory) -> str:
    """Every row of every table, as text."""
    with reading(factory) as session:
        tables = Base.metadata.sorted_tables
        return str([list(session.execute(select(table))) for table in tables])


def test_the_secret_is_nowhere_but_in_the_run_that_needs_it(
    client: TestClient,
    factory: SessionFactory,
    settings: Settings,
    credential_id: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    created = client.post("/v1/jobs", json=request_with(credential_id))
    assert created.status_code == 201, created.text
    job_id = created.json()["id"]
    answers = [created.text, client.get("/v1/credentials").text, client.get("/v1/audit").text]
    answers += [client.get(f"/v1/jobs/{job_id}{part}").text for part in ("", "/events")]
    said = "".join([*answers, everything_stored(factory), caplog.text])
    assert credential_id in said
    assert CANARY not in said
    with reading(factory) as session:
        job = session.get_one(jobs.Job, job_id)
        recipe = Recipe.model_validate(job.recipe)
        master = settings.installation_secret
        assert credentials.of_recipe(session, job.tenant_id, recipe, master) == CANARY


def test_gated_data_is_opened_by_the_credential_that_it_names(
    client: TestClient, factory: SessionFactory, settings: Settings, credential_id: str
) -> None:
    created = client.post("/v1/jobs", json=request_for_data(credential_id))
    assert created.status_code == 201, created.text
    with reading(factory) as session:
        job = session.get_one(jobs.Job, created.json()["id"])
        recipe = Recipe.model_validate(job.recipe)
        master = settings.installation_secret
        assert credentials.of_recipe(session, job.tenant_id, recipe, master) == CANARY
    missing = client.post("/v1/jobs", json=request_for_data("cred_" + "0" * 32))
    assert (missing.status_code, missing.json()["code"]) == (422, "credential_not_usable")
    assert missing.json()["param"] == "data.train.0.source.credential"


@pytest.mark.parametrize("secret", ["short", f"{CANARY}\n", f"{CANARY} ", ["list", CANARY]])
def test_a_refusal_does_not_repeat_the_secret(client: TestClient, secret: object) -> None:
    answer = client.post("/v1/credentials", json={"secret": secret})
    assert answer.status_code == 422
    assert CANARY not in answer.text


def test_another_tenants_credential_is_as_good_as_none(
    client: TestClient, anonymous: TestClient, stranger: Holder, credential_id: str
) -> None:
    answer = anonymous.post("/v1/jobs", json=request_with(credential_id), headers=stranger.headers)
    assert (answer.status_code, answer.json()["code"]) == (422, "credential_not_usable")
    assert answer.json()["param"] == "model.credential"


def test_a_row_moved_to_another_tenant_does_not_open(
    factory: SessionFactory, settings: Settings, credential_id: str, stranger: Holder
) -> None:
    recipe = Recipe.model_validate(request_with(credential_id))
    with transaction(factory) as session:
        session.get_one(Credential, credential_id).tenant_id = stranger.tenant_id
    with reading(factory) as session, pytest.raises(CredentialNotUsable, match="sealed"):
        credentials.of_recipe(session, stranger.tenant_id, recipe, settings.installation_secret)


def test_a_deleted_credential_keeps_nothing(
    client: TestClient, factory: SessionFactory, credential_id: str
) -> None:
    assert client.delete(f"/v1/credentials/{credential_id}").status_code == 204
    assert client.get(f"/v1/credentials/{credential_id}").status_code == 404
    assert client.post("/v1/jobs", json=request_with(credential_id)).status_code == 422
    with reading(factory) as session:
        assert session.get_one(Credential, credential_id).sealed == ""


def test_a_backup_holds_the_sealed_form_alone(
    factory: SessionFactory, credential_id: str, tmp_path: Path
) -> None:
    with reading(factory) as session:
        row = session.get_one(Credential, credential_id)
        dumped = json.dumps({"sealed": row.sealed, "name": row.name})
    assert CANARY not in dumped
    assert len(row.sealed) > len(CANARY)
