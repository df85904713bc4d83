"""The real application on a real database, with two tenants."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from api.main import create_app
from api.settings import ApiSettings
from registry.db import SessionFactory, transaction
from registry.settings import Settings
from registry.storage import LocalStore
from tests.factories import Holder, make_checkpoint, make_holder, make_job, make_steps, start_job
from tests.smollm2 import CONFIG


@pytest.fixture
def app(settings: Settings) -> FastAPI:
    """The application, looking at the database often and at no hub."""
    return create_app(settings, ApiSettings(poll_seconds=0.02, hub_seconds=0))


@pytest.fixture
def anonymous(app: FastAPI) -> Iterator[TestClient]:
    """A client without a key."""
    with TestClient(app, raise_server_exceptions=False, follow_redirects=False) as client:
        yield client


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model directory of which only the configuration is there: enough for estimates."""
    directory = tmp_path / "models" / "llama"
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(CONFIG))
    return directory


@pytest.fixture
def holder(factory: SessionFactory) -> Holder:
    """Who asks in these tests."""
    with transaction(factory) as session:
        return make_holder(session)


@pytest.fixture
def stranger(factory: SessionFactory) -> Holder:
    """Another tenant, with every scope."""
    with transaction(factory) as session:
        return make_holder(session, "others")


@pytest.fixture
def client(app: FastAPI, holder: Holder) -> Iterator[TestClient]:
    """A client with the holder's key."""
    with TestClient(
        app, headers=holder.headers, raise_server_exceptions=False, follow_redirects=False
    ) as client:
        yield client


@pytest.fixture
def store(settings: Settings) -> LocalStore:
    """The artifact store that the application serves from."""
    return LocalStore(settings.data_dir / "artifacts")


@pytest.fixture
def job_id(factory: SessionFactory, holder: Holder) -> str:
    """A queued job of the holder."""
    with transaction(factory) as session:
        return make_job(session, holder.tenant_id, name="tiny").id


@pytest.fixture
def running_job_id(
    factory: SessionFactory, holder: Holder, store: LocalStore, tmp_path: Path
) -> str:
    """A running job with steps and one checkpoint."""
    with transaction(factory) as session:
        job = make_job(session, holder.tenant_id, name="running")
        start_job(session, job)
        make_steps(session, job, first=1, count=50)
        make_checkpoint(session, store, job, tmp_path)
        return job.id
