"""What all tests share: databases, brokers, settings, and the promise to leave nothing behind.

`database_url` runs a test once on SQLite and once on Postgres, each time on a migrated database
without a row: a copy of a file, or a database that the test before has left empty.
"""

import os
import pwd
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import psycopg
import pytest
from sqlalchemy import Engine
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session

from registry.db import SessionFactory, create_engine, session_factory, transaction
from registry.migrate import migrate
from registry.settings import Settings
from registry.tables import Base
from tests.servers import PREFIX, postgres_server, redis_server

# Emptying is many times faster than creating a database for each test.
_EMPTY = f"TRUNCATE {', '.join(Base.metadata.tables)}"
_CLOSE_OTHERS = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
)

for name in [name for name in os.environ if name.startswith("ESPALIER_")]:
    # The tests say what they need; the developer's own service is none of their business.
    if not name.startswith("ESPALIER_TEST_"):
        del os.environ[name]


@pytest.fixture(scope="session", autouse=True)
def no_litter() -> Iterator[None]:
    """The whole suite leaves no process, no user account and no directory of its own."""
    users = {user.pw_name for user in pwd.getpwall()}
    yield
    left = [child for child in psutil.Process().children(recursive=True) if _is_running(child)]
    assert not left, f"processes are left: {left}"
    assert {user.pw_name for user in pwd.getpwall()} == users
    directories = list(Path(tempfile.gettempdir()).glob(f"{PREFIX}*"))
    assert not directories, f"directories are left: {directories}"


def _is_running(process: psutil.Process) -> bool:
    try:
        # Multiprocessing keeps one helper for the life of the interpreter.
        helper = "resource_tracker" in " ".join(process.cmdline())
        return not helper and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture(scope="session")
def postgres_url(no_litter: None) -> Iterator[str]:
    """A Postgres server: `ESPALIER_TEST_POSTGRES_URL`, or one of our own."""
    given = os.environ.get("ESPALIER_TEST_POSTGRES_URL")
    if given:
        yield given.replace("postgresql://", "postgresql+psycopg://")
        return
    with postgres_server() as url:
        yield url


@pytest.fixture(scope="session")
def redis_url(no_litter: None) -> Iterator[str]:
    """A Redis-protocol server: `ESPALIER_TEST_REDIS_URL`, or one of our own."""
    given = os.environ.get("ESPALIER_TEST_REDIS_URL")
    if given:
        yield given
        return
    with redis_server() as url:
        yield url


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite database, to copy."""
    directory = tmp_path_factory.mktemp("sqlite")
    settings = Settings(data_dir=directory)
    migrate(settings)
    return directory / "espalier.db"


@pytest.fixture(scope="session")
def postgres_database(postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A migrated database on the Postgres server, for one test after the other."""
    with new_postgres_database(postgres_url) as url:
        migrate(Settings(data_dir=tmp_path_factory.mktemp("postgres"), database_url=url))
        yield url


@contextmanager
def new_postgres_database(postgres_url: str) -> Iterator[str]:
    """An empty database on the server, dropped afterwards."""
    name = f"espalier_{uuid.uuid4().hex}"
    execute_on_server(postgres_url, f"CREATE DATABASE {name}")
    yield make_url(postgres_url).set(database=name).render_as_string(hide_password=False)
    execute_on_server(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")


def execute_on_server(url: str, statement: str) -> None:
    """Run one statement outside a transaction."""
    plain = url.replace("postgresql+psycopg:", "postgresql:")
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute(statement)  # type: ignore[call-overload]  # Names made here, no input.


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A migrated database without a row: the test runs once on each kind."""
    if request.param == "sqlite":
        path = tmp_path / "espalier.db"
        shutil.copy(request.getfixturevalue("sqlite_template"), path)
        yield f"sqlite:///{path}"
        return
    url: str = request.getfixturevalue("postgres_database")
    yield url
    empty(url)


def empty(url: str) -> None:
    """Leave no row in a Postgres database, and no connection."""
    execute_on_server(url, _CLOSE_OTHERS)
    execute_on_server(url, _EMPTY)


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    """Settings for this test's own database, broker and artifacts."""
    return Settings(data_dir=tmp_path / "data", database_url=database_url, storage_reserve_bytes=0)


@pytest.fixture
def engine(settings: Settings) -> Iterator[Engine]:
    """An engine on this test's database."""
    engine = create_engine(settings)
    yield engine
    engine.dispose()


@pytest.fixture
def factory(engine: Engine) -> SessionFactory:
    """Sessions on this test's database."""
    return session_factory(engine)


@pytest.fixture
def session(factory: SessionFactory) -> Iterator[Session]:
    """One transaction around the test, committed at its end."""
    with transaction(factory) as session:
        yield session
