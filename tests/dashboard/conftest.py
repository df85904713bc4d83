"""The pages on the real application; most of them have nothing to do with which database it is."""

import re
import shutil
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from tests.api.conftest import (
    anonymous,
    app,
    client,
    holder,
    job_id,
    running_job_id,
    store,
    stranger,
)
from tests.factories import Holder

__all__ = [
    "anonymous",
    "app",
    "client",
    "holder",
    "job_id",
    "running_job_id",
    "store",
    "stranger",
]


@pytest.fixture
def database_url(sqlite_template: Path, tmp_path: Path) -> str:
    """SQLite alone: what the pages show does not depend on the database."""
    path = tmp_path / "espalier.db"
    shutil.copy(sqlite_template, path)
    return f"sqlite:///{path}"


FORM_TOKEN = re.compile(r'name="form_token" value="([0-9a-f]+)"')


def form_token(page: str) -> str:
    """The token that a page's forms send along."""
    found = FORM_TOKEN.search(page)
    assert found
    return found[1]


@pytest.fixture
def browser(anonymous: TestClient, holder: Holder) -> TestClient:
    """A client that signed in through the form."""
    page = anonymous.get("/sign-in?next=/jobs").text
    data = {"api_key": holder.secret, "form_token": form_token(page), "next": "/jobs"}
    response = anonymous.post("/sign-in", data=data)
    assert (response.status_code, response.headers["location"]) == (303, "/jobs")
    return anonymous
