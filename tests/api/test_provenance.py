"""Finding things, where they come from, and whether they may be promoted."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from pruning.events import LayerWidths
from pruning.manifest import Lineage, Manifest
from pruning.plan import LayerPlan, PruningPlan
from pruning.recipe import Recipe
from registry import comparisons, jobs
from registry.comparisons import Point
from registry.db import SessionFactory, transaction
from registry.storage import LocalStore
from registry.tables import Checkpoint, Evaluation
from tests.factories import (
    Holder,
    make_checkpoint,
    make_evaluation,
    make_job,
    start_job,
    succeed,
)

PLAN = PruningPlan(
    layers=(LayerPlan(intermediate=(0, 2, 5), kv_groups=(1,)),) * 2,
)


def manifest() -> Manifest:
    return Manifest(
        increment=1,
        step=8,
        num_tokens=4096,
        num_parameters=110_000_000,
        base_num_parameters=134_515_008,
        target_num_parameters=110_000_000,
        num_bytes=1,
        dtype="bfloat16",
        final=True,
        outcome="target_reached",
        widths=(LayerWidths(intermediate_size=3, num_attention_heads=1, num_key_value_heads=1),),
        measurements=(),
        lineage=Lineage(model="org/base", model_revision="c" * 40, parent_manifest_sha256=None),
        data_fingerprint="f" * 64,
        recipe=Recipe.model_validate({"model": "org/base", "target": "110M", "data": "org/text"}),
        plan=PLAN,
        versions={"espalier": "0.1.0"},
        created_at=datetime.now(UTC),
        files={},
    )


@pytest.fixture
def chain(
    factory: SessionFactory, holder: Holder, store: LocalStore, tmp_path: Path
) -> list[Checkpoint]:
    """Two checkpoints of a job, of perplexity 26 and 30."""
    files = {"manifest.json": manifest().model_dump_json().encode()}
    with transaction(factory) as session:
        job = make_job(session, holder.tenant_id, name="Winter_cut 50%")
        start_job(session, job)
        made = []
        for increment, value in ((1, 26.0), (2, 30.0)):
            row = make_checkpoint(session, store, job, tmp_path, increment=increment, files=files)
            found = make_evaluation(
                *(session, job),
                increment=increment,
                stage="recovered",
                value=value,
                tokens=1,
            )
            found.checkpoint_id = row.id
            made.append(row)
        succeed(session, job)
        return made


@pytest.fixture
def alias(client: TestClient, chain: list[Checkpoint]) -> str:
    """A model with both checkpoints as versions, and its alias on the first."""
    assert client.post("/v1/models", json={"name": "small"}).status_code == 201
    for checkpoint in chain:
        client.post("/v1/models/small/versions", json={"checkpoint": checkpoint.id})
    url = "/v1/models/small/aliases/production"
    assert client.put(url, json={"version": 1}).status_code == 200
    return url


@pytest.mark.parametrize("text", ["winter_CUT", "50%", "Winter"])
def test_a_part_of_a_name_finds_job_and_checkpoints(
    client: TestClient, chain: list[Checkpoint], text: str, stranger: Holder
) -> None:
    found = client.get("/v1/search", params={"q": text}).json()["data"]
    assert sorted(hit["kind"] for hit in found) == ["checkpoint", "checkpoint", "job"]
    for hit in found:
        assert client.get(hit["url"]).status_code == 200
    mine = client.get("/v1/search", params={"q": text}, headers=stranger.headers)
    assert mine.json()["data"] == []


def test_signs_of_a_pattern_are_only_letters(client: TestClient, chain: list[Checkpoint]) -> None:
    assert client.get("/v1/search", params={"q": "W%t"}).json()["data"] == []


def test_a_model_is_found_by_its_versions(client: TestClient, alias: str) -> None:
    request = {"name": "large", "description": "Pruned in spring"}
    client.post("/v1/models", json=request)
    found = client.get("/v1/search", params={"q": "spring"}).json()["data"]
    assert [(hit["kind"], hit["name"], hit["url"]) for hit in found] == [
        ("model", "large", "/v1/models/large")
    ]


def test_a_checkpoint_says_which_groups_of_its_base_it_kept(
    client: TestClient, chain: list[Checkpoint]
) -> None:
    answer = client.get(f"/v1/checkpoints/{chain[0].id}/origin")
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert found["plan"]["layers"][0]["intermediate"] == [0, 2, 5]
    assert found["plan"]["layers"][0]["kv_groups"] == [1]
    assert (found["base_model"], found["base_revision"]) == ("org/base", "c" * 40)
    assert found["data_fingerprint"] == "f" * 64
    assert found["versions"] == {"espalier": "0.1.0"}
    assert found["tokens"] == 4096


def move(client: TestClient, url: str, **gate: float | str) -> tuple[int, str]:
    answer = client.put(url, json={"version": 2, "gate": gate}, headers={"If-Match": '"r1"'})
    return answer.status_code, answer.text


def test_a_version_that_is_not_good_enough_is_not_promoted(client: TestClient, alias: str) -> None:
    status, text = move(client, alias, at_most=28.0)
    assert status == 409
    assert "gate_not_passed" in text
    assert "perplexity perplexity of version 2 is 30, above 28" in text
    assert client.get(alias).json()["version"] == 1


def test_a_version_may_be_a_little_worse_than_the_one_before(
    client: TestClient, alias: str
) -> None:
    status, text = move(client, alias, max_loss=0.1)
    assert status == 409
    assert "15.4% worse than version 1; 10.0% is allowed" in text
    assert move(client, alias, max_loss=0.2)[0] == 200


def test_what_was_not_measured_is_not_promoted(client: TestClient, alias: str) -> None:
    status, text = move(client, alias, suite="arc_easy", metric="acc", better="higher")
    assert status == 409
    assert "measure it first" in text


def point(name: str, params: int, perplexity: float, speed: float | None) -> Point:
    return Point(
        checkpoint_id=name,
        job_id="job",
        increment=1,
        params=params,
        size_bytes=1,
        perplexity=perplexity,
        base_perplexity=None,
        speed=speed,
        speed_protocol="cpu" if speed else None,
    )


def test_a_larger_and_worse_checkpoint_stays_on_the_frontier_if_it_is_faster() -> None:
    points = [
        point("small", 90, 20.0, 10.0),
        point("shallow", 100, 21.0, 14.0),
        point("dull", 100, 22.0, 9.0),
        point("unmeasured", 110, 21.5, None),
        point("best", 120, 15.0, 8.0),
    ]
    assert comparisons.frontier(points) == {"small", "shallow", "best"}


def test_the_frontier_tells_the_speed_that_was_measured(
    client: TestClient, chain: list[Checkpoint], factory: SessionFactory
) -> None:
    with transaction(factory) as session:
        job = jobs.get(session, chain[0].tenant_id, chain[0].job_id)
        row: Evaluation = make_evaluation(
            *(session, job),
            increment=1,
            stage="recovered",
            value=12.5,
            tokens=1,
            suite="speed",
            metric="decode_tokens_per_second",
        )
        row.checkpoint_id = chain[0].id
        name = job.model
    found = client.get("/v1/frontier", params={"model": name}).json()["points"]
    assert {one["decode_tokens_per_second"] for one in found} == {12.5, None}
