"""Connections to Postgres that are kept, and what is read of their answers."""

from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Engine, text

from registry.db import create_engine
from registry.settings import Settings
from tests.conftest import execute_on_server

_CLOSE = "SELECT pg_terminate_backend({pid}, 5000)"


@pytest.fixture
def settings_on_postgres(postgres_database: str, tmp_path: Path) -> Settings:
    """Settings on the Postgres server, whichever database other tests run on."""
    return Settings(data_dir=tmp_path, database_url=postgres_database)


def _backend(engine: Engine) -> int:
    with engine.connect() as connection:
        return int(connection.execute(text("SELECT pg_backend_pid()")).scalar_one())


def test_a_kept_connection_that_the_server_has_closed_is_replaced(
    postgres_database: str, settings_on_postgres: Settings
) -> None:
    engine = create_engine(settings_on_postgres)
    first = _backend(engine)
    assert _backend(engine) == first
    execute_on_server(postgres_database, _CLOSE.format(pid=first))
    assert _backend(engine) != first
    engine.dispose()


def test_columns_are_named_and_typed_as_the_driver_does(settings_on_postgres: Settings) -> None:
    engine = create_engine(settings_on_postgres)
    query = "SELECT 1 AS one, 'x'::text AS \"zwei ü\", NULL::jsonb AS three"
    with engine.connect() as connection:
        cursor = connection.connection.cursor()
        cursor.execute(query)
        ours = [(column[0], column[1]) for column in cursor.description or ()]
        driver = connection.connection.driver_connection
        assert isinstance(driver, psycopg.Connection)
        plain = psycopg.Cursor(driver).execute(query)
        theirs = [(column.name, column.type_code) for column in plain.description or ()]
    engine.dispose()
    assert ours == theirs
