"""Registered models: versions, aliases by compare-and-swap, lineage; jobs side by side."""

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from registry import garbage, jobs
from registry.db import SessionFactory, transaction
from registry.storage import LocalStore
from registry.tables import Checkpoint, Job
from tests.factories import (
    Holder,
    make_checkpoint,
    make_evaluation,
    make_job,
    start_job,
    succeed,
)


@pytest.fixture
def chain(
    factory: SessionFactory, holder: Holder, store: LocalStore, tmp_path: Path
) -> list[Checkpoint]:
    """The two checkpoints of a finished job, measured."""
    return finished(factory, holder, store, tmp_path, perplexities=(26.0, 30.0))


def finished(
    factory: SessionFactory,
    holder: Holder,
    store: LocalStore,
    directory: Path,
    *,
    perplexities: tuple[float, float],
    **fields: Any,
) -> list[Checkpoint]:
    with transaction(factory) as session:
        job = make_job(session, holder.tenant_id, **fields)
        start_job(session, job)
        made = []
        for increment, (params, value) in enumerate(
            zip((120_000_000, 110_000_000), perplexities, strict=True), 1
        ):
            job.params_now = params
            made.append(make_checkpoint(session, store, job, directory, increment=increment))
            make_evaluation(
                session, job, increment=increment, stage="recovered", value=value, tokens=1
            )
        succeed(session, job)
        return made


@pytest.fixture
def model(client: TestClient, chain: list[Checkpoint]) -> str:
    """A model with two versions."""
    assert client.post("/v1/models", json={"name": "small"}).status_code == 201
    for checkpoint in chain:
        answer = client.post("/v1/models/small/versions", json={"checkpoint": checkpoint.id})
        assert answer.status_code == 201, answer.text
    return "/v1/models/small"


def test_versions_are_numbered_and_name_their_checkpoint(
    client: TestClient, model: str, chain: list[Checkpoint]
) -> None:
    versions = client.get(f"{model}/versions").json()["data"]
    assert [(v["version"], v["checkpoint"]) for v in versions] == [
        *((2, chain[1].id), (1, chain[0].id))
    ]
    assert client.get(model).json()["last_version"] == 2
    assert client.get(f"{model}/versions/3").status_code == 404


def test_a_name_is_taken_once(client: TestClient, model: str, stranger: Holder) -> None:
    again = client.post("/v1/models", json={"name": "small"})
    assert (again.status_code, again.json()["code"]) == (409, "already_exists")
    other = client.post("/v1/models", json={"name": "small"}, headers=stranger.headers)
    assert other.status_code == 201


def test_models_are_paged_by_name(client: TestClient) -> None:
    for name in ("b", "a", "c"):
        client.post("/v1/models", json={"name": name})
    first = client.get("/v1/models", params={"limit": 2}).json()
    assert [one["name"] for one in first["data"]] == ["a", "b"]
    rest = client.get("/v1/models", params={"after": first["last_name"]}).json()
    assert ([one["name"] for one in rest["data"]], rest["has_more"]) == (["c"], False)


def test_an_alias_moves_only_for_who_knows_where_it_stands(client: TestClient, model: str) -> None:
    url = f"{model}/aliases/production"
    made = client.put(url, json={"version": 1})
    assert (made.status_code, made.headers["etag"]) == (200, '"r1"')
    assert client.put(url, json={"version": 2}).status_code == 428
    moved = client.put(url, json={"version": 2}, headers={"If-Match": '"r1"'})
    assert (moved.json()["version"], moved.headers["etag"]) == (2, '"r2"')
    for known in ('"r1"', "*", '"x"'):
        late = client.put(url, json={"version": 1}, headers={"If-Match": known})
        assert (late.status_code, late.json()["code"]) == (412, "version_mismatch")
    assert client.get(url).json()["version"] == 2
    assert client.get(model).json()["aliases"][0]["alias"] == "production"
    assert client.delete(url, headers={"If-Match": '"r1"'}).status_code == 412
    assert client.delete(url, headers={"If-Match": '"r2"'}).status_code == 204
    assert client.get(url).status_code == 404


def test_an_alias_names_a_version_that_exists(client: TestClient, model: str) -> None:
    assert client.put(f"{model}/aliases/a", json={"version": 9}).status_code == 404


def test_a_version_keeps_its_checkpoint_after_the_job_is_deleted(
    client: TestClient,
    model: str,
    chain: list[Checkpoint],
    factory: SessionFactory,
    store: LocalStore,
) -> None:
    with transaction(factory) as session:
        jobs.delete(session, jobs.lock(session, chain[0].job_id))
    garbage.collect(factory, store)
    url = f"/v1/checkpoints/{chain[0].id}/files/config.json"
    assert client.get(url).content == b"{}"
    assert client.delete(model).status_code == 204
    garbage.collect(factory, store)
    assert client.get(url).status_code == 410


def test_lineage_leads_from_the_base_model_to_the_version(
    client: TestClient, model: str, chain: list[Checkpoint]
) -> None:
    found = client.get(f"{model}/versions/2/lineage").json()
    assert (found["base_model"], found["base_revision"]) == ("org/tiny", "0" * 40)
    assert [step["checkpoint"] for step in found["steps"]] == [one.id for one in chain]


def test_another_tenant_finds_no_model_and_cannot_name_a_checkpoint(
    client: TestClient, model: str, chain: list[Checkpoint], stranger: Holder
) -> None:
    for path in ("", "/versions", "/versions/1", "/versions/1/lineage", "/aliases/a"):
        assert client.get(model + path, headers=stranger.headers).status_code == 404
    client.post("/v1/models", json={"name": "theirs"}, headers=stranger.headers)
    body = {"checkpoint": chain[0].id}
    answer = client.post("/v1/models/theirs/versions", json=body, headers=stranger.headers)
    assert answer.status_code == 404


def test_a_version_added_twice_under_one_idempotency_key_is_one(
    client: TestClient, model: str, chain: list[Checkpoint]
) -> None:
    headers = {"Idempotency-Key": "once"}
    body = {"checkpoint": chain[0].id}
    answers = [client.post(f"{model}/versions", json=body, headers=headers) for _ in range(2)]
    assert [answer.json()["version"] for answer in answers] == [3, 3]


# --- side by side -----------------------------------------------------------------------------


def test_the_frontier_marks_what_nothing_beats(
    client: TestClient,
    factory: SessionFactory,
    holder: Holder,
    store: LocalStore,
    tmp_path: Path,
    chain: list[Checkpoint],
) -> None:
    worse = finished(factory, holder, store, tmp_path, perplexities=(25.0, 31.0))
    points = client.get("/v1/frontier", params={"model": "org/tiny"}).json()["points"]
    assert len(points) == 4
    best = {point["checkpoint"] for point in points if point["on_frontier"]}
    assert best == {chain[1].id, worse[0].id}
    assert points[0]["baseline_ratio"] == pytest.approx(30.0 / 24.31)
    assert client.get("/v1/frontier", params={"model": "other"}).json()["points"] == []


def test_comparing_jobs_shows_where_their_recipes_differ(
    client: TestClient,
    factory: SessionFactory,
    holder: Holder,
    store: LocalStore,
    tmp_path: Path,
    chain: list[Checkpoint],
) -> None:
    other = finished(
        factory, holder, store, tmp_path, perplexities=(25.0, 31.0), request={"seed": 7}
    )
    ids = [chain[0].job_id, other[0].job_id]
    found = client.get("/v1/compare", params={"jobs": ",".join(ids)}).json()
    assert [job["id"] for job in found["jobs"]] == ids
    assert [len(job["points"]) for job in found["jobs"]] == [2, 2]
    assert found["differences"] == {"seed": [42, 7]}


def test_another_tenants_job_cannot_be_compared(
    client: TestClient, chain: list[Checkpoint], stranger: Holder, factory: SessionFactory
) -> None:
    params = {"jobs": chain[0].job_id}
    assert client.get("/v1/compare", params=params, headers=stranger.headers).status_code == 404
    frontier = client.get("/v1/frontier", params={"model": "org/tiny"}, headers=stranger.headers)
    assert frontier.json()["points"] == []
    with transaction(factory) as session:
        assert session.get(Job, chain[0].job_id) is not None


def test_what_no_version_pins_any_more_is_kept_only_as_its_job_says(
    client: TestClient, factory: SessionFactory, model: str, chain: list[Checkpoint]
) -> None:
    first = chain[0].id
    with transaction(factory) as session:
        job = session.get_one(Job, chain[0].job_id)
        job.recipe = {**job.recipe, "output": {"keep": "final"}}
        assert session.get_one(Checkpoint, first).pinned
    assert client.get(f"/v1/checkpoints/{first}/files").status_code == 200
    assert client.delete(model).status_code == 204
    assert client.get(f"/v1/checkpoints/{first}/files").status_code == 410
    assert client.get(f"/v1/checkpoints/{chain[1].id}/files").status_code == 200
