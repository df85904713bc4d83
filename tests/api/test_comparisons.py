"""Is the result better than its parent, than the cut alone, than what one could download?"""

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from pruning.paired import encode_rows
from registry import checkpoints
from registry.db import SessionFactory, transaction
from registry.public_models import PUBLIC_MODELS
from registry.storage import LocalStore
from registry.tables import Job
from tests.factories import (
    Holder,
    make_checkpoint,
    make_evaluation,
    make_job,
    start_job,
    succeed,
)

PARENT = [1.0] * 40 + [0.0] * 10
RESULT = [1.0] * 28 + [0.0] * 20 + [1.0] * 2


def measure(session: Any, job: Job, stage: str, increment: int, rows: list[float]) -> None:
    value = sum(rows) / len(rows)
    row = make_evaluation(
        *(session, job),
        increment=increment,
        stage=stage,
        value=value,
        tokens=1,
        suite="arc_easy",
        metric="acc",
    )
    row.rows = encode_rows(rows)
    row.num_samples = len(rows)
    row.protocol = {"data": "d", "num_fewshot": 0}


@pytest.fixture
def job_id(factory: SessionFactory, holder: Holder, store: LocalStore, tmp_path: Path) -> str:
    """A finished job whose parent, cut and result answered the same 50 questions."""
    with transaction(factory) as session:
        job = make_job(session, holder.tenant_id)
        start_job(session, job)
        measure(session, job, "base", 0, PARENT)
        measure(session, job, "pruned", 1, [0.0] * 50)
        job.params_now = 110_000_000
        make_checkpoint(session, store, job, tmp_path, increment=1)
        measure(session, job, "recovered", 1, RESULT)
        succeed(session, job)
        return job.id


def test_the_result_stands_beside_parent_cut_and_public_models(
    client: TestClient, job_id: str
) -> None:
    answer = client.get(f"/v1/jobs/{job_id}/comparison")
    assert answer.status_code == 200, answer.text
    found = answer.json()
    accuracies = [
        figure["value"]
        for standing in ("parent", "cut", "result")
        for figure in found[standing]["figures"]
        if figure["suite"] == "arc_easy"
    ]
    assert accuracies == [0.8, 0.0, 0.6]
    (pair,) = found["against_parent"]
    assert pair["test"] == "mcnemar"
    assert (pair["rows"], pair["greater"], pair["less"]) == (50, 2, 12)
    assert pair["difference"] == pytest.approx(-0.2)
    assert pair["low"] < -0.2 < pair["high"]
    assert found["against_cut"][0]["less"] == 0
    sizes = [model["params"] for model in found["public_models"]]
    assert sizes == sorted(sizes)
    assert all(55_000_000 <= size <= 220_000_000 for size in sizes)
    assert "HuggingFaceTB/SmolLM2-135M" in {model["name"] for model in found["public_models"]}


def test_a_public_model_that_is_named_is_shown_whatever_its_size(
    client: TestClient, job_id: str
) -> None:
    asked = {"models": "Qwen/Qwen2.5-0.5B"}
    found = client.get(f"/v1/jobs/{job_id}/comparison", params=asked).json()
    assert "Qwen/Qwen2.5-0.5B" in {model["name"] for model in found["public_models"]}


def test_a_model_measured_beside_it_is_compared_row_by_row(
    client: TestClient, job_id: str, factory: SessionFactory
) -> None:
    with transaction(factory) as session:
        job = session.get_one(Job, job_id)
        row = make_evaluation(
            *(session, job),
            increment=0,
            stage="base",
            value=0.5,
            tokens=0,
            suite="arc_easy@SmolLM2-360M",
            metric="acc",
        )
        row.rows = encode_rows([0.0] * 25 + [1.0] * 25)
        row.protocol = {
            "data": "d",
            "num_fewshot": 0,
            "model": "HuggingFaceTB/SmolLM2-360M",
            "num_parameters": 361_821_120,
        }
    found = client.get(f"/v1/jobs/{job_id}/comparison").json()
    (other,) = found["others"]
    assert (other["name"], other["params"]) == ("HuggingFaceTB/SmolLM2-360M", 361_821_120)
    assert other["figures"][0]["suite"] == "arc_easy"
    assert other["against_result"][0]["difference"] == pytest.approx(0.1)
    suites = {figure["suite"] for figure in found["parent"]["figures"]}
    assert suites == {"perplexity", "arc_easy"}


def test_other_rows_are_not_compared(
    client: TestClient, job_id: str, factory: SessionFactory
) -> None:
    with transaction(factory) as session:
        for row in checkpoints.evaluations_for_job(session, job_id):
            if row.stage == "base":
                row.protocol = {"data": "other", "num_fewshot": 0}
    assert client.get(f"/v1/jobs/{job_id}/comparison").json()["against_parent"] == []


def test_comparing_jobs_says_how_each_stands_to_its_parent(client: TestClient, job_id: str) -> None:
    (job,) = client.get("/v1/compare", params={"jobs": job_id}).json()["jobs"]
    assert job["against_parent"][0]["difference"] == pytest.approx(-0.2)


def test_another_tenant_sees_nothing(client: TestClient, job_id: str, stranger: Holder) -> None:
    answer = client.get(f"/v1/jobs/{job_id}/comparison", headers=stranger.headers)
    assert answer.status_code == 404


def test_every_figure_of_a_public_model_names_its_source() -> None:
    for model in PUBLIC_MODELS:
        assert bool(model.figures) == (model.source is not None) == (model.protocol is not None)
