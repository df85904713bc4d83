"""`POST /v1/estimates` foretells quality from the jobs that the tenant has finished."""

import math
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from api.main import create_app
from api.settings import ApiSettings
from registry.db import SessionFactory, transaction
from registry.settings import Settings
from registry.storage import LocalStore
from tests.factories import (
    Holder,
    make_checkpoint,
    make_evaluation,
    make_job,
    start_job,
    succeed,
)

BASE = 24.31
"""The base perplexity that `start_job` records."""


@pytest.fixture
def settings(settings: Settings, model: Path) -> Settings:
    return settings.model_copy(update={"allowed_paths": (model.parent,)})


@pytest.fixture
def app(settings: Settings) -> FastAPI:
    return create_app(settings, ApiSettings(hub_seconds=0))


def finish_jobs(
    factory: SessionFactory, holder: Holder, store: LocalStore, directory: Path, number: int
) -> None:
    """Jobs that each removed a little more, and paid two nats per share removed for it."""
    with transaction(factory) as session:
        for index in range(number):
            job = make_job(session, holder.tenant_id)
            start_job(session, job)
            assert job.params_start is not None
            job.params_now = round(job.params_start * (0.95 - 0.03 * index))
            make_checkpoint(session, store, job, directory, increment=1)
            removed = 1 - job.params_now / job.params_start
            row = make_evaluation(
                *(session, job),
                increment=1,
                stage="recovered",
                tokens=1_000_000,
                value=BASE * math.exp(2 * removed),
            )
            row.checkpoint_id = job.head_checkpoint_id
            succeed(session, job)


def ask(client: TestClient, model: Path) -> dict[str, float]:
    request = {
        "model": str(model),
        "target": "110M",
        "data": {"train": {"kind": "inline", "documents": ["one", "two"]}},
        "schedule": {"num_tokens": 1_000_000},
    }
    answer = client.post("/v1/estimates", json=request)
    assert answer.status_code == 200, answer.text
    (found,) = answer.json()["forecast"]
    return dict(found)


def test_past_jobs_foretell_a_target_with_an_interval(
    client: TestClient,
    model: Path,
    factory: SessionFactory,
    holder: Holder,
    store: LocalStore,
    tmp_path: Path,
) -> None:
    finish_jobs(factory, holder, store, tmp_path, 8)
    found = ask(client, model)
    removed = 1 - found["params"] / 134_515_008
    assert found["ratio"] == pytest.approx(math.exp(2 * removed), rel=0.02)
    assert found["ratio_low"] <= found["ratio"] <= found["ratio_high"]
    assert (found["jobs"], found["tried"]) == (8, 8)
    assert found["reason"] is None


def test_a_short_history_foretells_nothing(client: TestClient, model: Path) -> None:
    found = ask(client, model)
    assert found["ratio"] is None
    assert found["reason"] == "0 past jobs were measured, a forecast takes 5"
