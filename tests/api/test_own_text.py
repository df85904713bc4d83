"""Pruning goes on with the text that a checkpoint was made with."""

from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from pruning.recipe import Recipe
from registry.db import SessionFactory, transaction
from registry.storage import LocalStore
from tests.factories import SMALL_REQUEST, Holder, make_checkpoint, make_job, start_job

DATA = {
    "train": [
        {"name": "prose", "source": {"kind": "inline", "documents": ["one", "two"]}, "weight": 2.0},
        {"name": "code", "source": {"kind": "inline", "documents": ["three", "four"]}},
    ],
    "held_out_fraction": 0.25,
    "deduplicate": "exact",
}


@pytest.fixture
def checkpoint_id(
    factory: SessionFactory, holder: Holder, store: LocalStore, tmp_path: Path
) -> str:
    """Of a job with two domains."""
    with transaction(factory) as session:
        job = make_job(session, holder.tenant_id, request={"data": DATA})
        start_job(session, job)
        job.params_now = 110_000_000
        return make_checkpoint(session, store, job, tmp_path, increment=1).id


def test_a_new_job_has_all_of_the_data_of_the_checkpoint_s_job(
    client: TestClient, checkpoint_id: str
) -> None:
    created = client.post("/v1/jobs", json={**SMALL_REQUEST, "data": checkpoint_id})
    assert created.status_code == 201, created.text
    expected = Recipe.model_validate({**SMALL_REQUEST, "data": DATA}).data
    assert created.json()["resolved"]["recipe"]["data"] == expected.model_dump(mode="json")
    assert created.json()["spec"]["data"] == checkpoint_id


def test_it_can_be_looked_at_before(client: TestClient, checkpoint_id: str) -> None:
    found = client.post("/v1/data/preview", json={"data": checkpoint_id})
    assert found.status_code == 200, found.text
    assert [domain["name"] for domain in found.json()["domains"]] == ["prose", "code"]


def test_a_checkpoint_of_another_tenant_is_as_good_as_none(
    client: TestClient, stranger: Holder, checkpoint_id: str
) -> None:
    request = {**SMALL_REQUEST, "data": checkpoint_id}
    answer = client.post("/v1/jobs", json=request, headers=stranger.headers)
    assert (answer.status_code, answer.json()["param"]) == (422, "data.train")


def test_it_goes_alone(client: TestClient, checkpoint_id: str) -> None:
    own = {"name": "own", "source": checkpoint_id}
    other = {"name": "other", "source": "org/text"}
    answer = client.post("/v1/jobs", json={**SMALL_REQUEST, "data": {"train": [own, other]}})
    assert answer.status_code == 422
    assert "only domain" in answer.json()["detail"]
