"""Alive, ready, and what it is."""

import shutil
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from api.main import create_app
from api.readiness import run_checks, worst_of
from api.schemas.operations import Check
from registry.db import SessionFactory, transaction
from registry.queue import celery_app
from registry.settings import Settings
from registry.sweeping import sweep_round
from registry.tables import OutboxMessage
from registry.workers import Identity, beat
from tests.factories import SMALL_REQUEST
from tests.servers import free_port


def test_without_a_worker_the_service_is_degraded_and_serves(anonymous: TestClient) -> None:
    response = anonymous.get("/readyz")
    assert response.status_code == 200
    found = {name: check["status"] for name, check in response.json()["checks"].items()}
    assert found == {
        "database": "ok",
        "migrations": "ok",
        "artifacts": "ok",
        "broker": "ok",
        "worker": "degraded",
    }


def test_while_the_broker_is_away_jobs_are_taken_and_their_hints_wait(
    client: TestClient, factory: SessionFactory, settings: Settings
) -> None:
    broken = settings.model_copy(update={"broker_url": f"redis://127.0.0.1:{free_port()}/0"})
    assert client.post("/v1/jobs", json=SMALL_REQUEST).status_code == 201
    sweep_round(factory, broken, celery_app(broken))
    with transaction(factory) as session:
        [hint] = session.scalars(select(OutboxMessage))
        hint.available_at -= timedelta(minutes=10)
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()["checks"]["broker"]["status"]) == (200, "degraded")
    sweep_round(factory, settings, celery_app(settings))
    assert client.get("/readyz").json()["checks"]["broker"]["status"] == "ok"


def test_with_a_live_worker_it_is_ready(anonymous: TestClient, factory: SessionFactory) -> None:
    identity = Identity(id="w", host="h", pid=1, version="0", queues=("default",))
    with transaction(factory) as session:
        beat(session, identity, status="online", current_job_id=None)
    assert anonymous.get("/readyz").json()["status"] == "ok"


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_database_without_tables_is_not_ready(settings: Settings) -> None:
    empty = settings.model_copy(update={"database_url": f"sqlite:///{settings.data_dir}/empty.db"})
    with TestClient(create_app(empty)) as client:
        response = client.get("/readyz")
    assert response.status_code == 503
    assert response.json()["checks"]["migrations"]["status"] == "failed"


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_an_artifact_store_that_cannot_be_written_is_not_ready(settings: Settings) -> None:
    with TestClient(create_app(settings)) as client:
        shutil.rmtree(settings.data_dir / "artifacts", ignore_errors=True)
        (settings.data_dir / "artifacts").write_text("a file in its place")
        response = client.get("/readyz")
    assert (response.status_code, response.json()["status"]) == (503, "failed")


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_alive_and_version_ask_nothing_of_the_database(settings: Settings) -> None:
    nowhere = settings.model_copy(
        update={"database_url": "postgresql+psycopg://nobody@127.0.0.1:1/none"}
    )
    with TestClient(create_app(nowhere)) as client:
        assert client.get("/healthz").json() == {"status": "ok"}
        assert client.get("/version").json()["version"]


@pytest.fixture
def hanging() -> Iterator[Callable[[], Check]]:
    """A check that lasts as long as the test."""
    done = threading.Event()

    def wait() -> Check:
        done.wait(5)
        return Check(status="ok")

    yield wait
    done.set()


def test_a_check_that_hangs_fails_in_time(hanging: Callable[[], Check]) -> None:
    checks = run_checks({"slow": hanging, "fast": lambda: Check(status="ok")}, seconds=0.05)
    assert (checks["slow"].status, checks["fast"].status) == ("failed", "ok")
    assert worst_of(checks) == "failed"
