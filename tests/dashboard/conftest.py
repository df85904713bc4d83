"""The pages on the real application; most of them have nothing to do with which database it is."""

import shutil
from pathlib import Path

import pytest

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
