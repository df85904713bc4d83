"""A real server with one thing of every kind, for a module's tests."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from registry.db import SessionFactory, create_engine, session_factory, transaction
from registry.settings import Settings
from registry.storage import LocalStore
from tests.api.furniture import furnish
from tests.api.served import serving
from tests.factories import Holder, make_holder


@dataclass(frozen=True)
class Furnished:
    """A served API, whose key opens it, what is there, and its database."""

    url: str
    holder: Holder
    ids: dict[str, str]
    factory: SessionFactory


@pytest.fixture(scope="module")
def server(
    no_litter: None, sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Furnished]:
    """The API in a process of its own, on SQLite."""
    directory = tmp_path_factory.mktemp("served")
    settings = Settings(data_dir=directory / "data", storage_reserve_bytes=0)
    settings.data_dir.mkdir()
    shutil.copy(sqlite_template, settings.data_dir / "espalier.db")
    engine = create_engine(settings)
    factory = session_factory(engine)
    with transaction(factory) as session:
        holder = make_holder(session)
    with (
        serving(settings) as served,
        httpx.Client(base_url=served.url, headers=holder.headers, trust_env=False) as client,
    ):
        store = LocalStore(settings.data_dir / "artifacts")
        ids = furnish(client, factory, store, holder, directory)
        yield Furnished(served.url, holder, ids, factory)
    engine.dispose()
