"""Statements handed to the driver: the same rows, the same errors, and who listens hears them."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import Engine, Table, bindparam, event, select, text
from sqlalchemy.exc import DataError, IntegrityError, OperationalError
from sqlalchemy.orm import Session

from registry.db import SessionFactory, create_engine
from registry.job_rows import _COLUMNS
from registry.prepared import Prepared
from registry.settings import Settings
from registry.tables import Job, Tenant
from tests.conftest import execute_on_server
from tests.registry.conftest import MakeJob

_JOB = select(*_COLUMNS).where(Job.id == bindparam("job_id"))
_TENANT = Tenant.__table__


@pytest.fixture
def on_postgres(postgres_database: str, tmp_path: Path) -> Iterator[Engine]:
    """The engine of a Postgres database, whichever other tests run on."""
    engine = create_engine(Settings(data_dir=tmp_path, database_url=postgres_database))
    yield engine
    engine.dispose()


def test_a_row_is_what_sqlalchemy_reads(session: Session, make_job: MakeJob) -> None:
    job = make_job(name="ü", metadata={"team": "nlp"}, max_runtime_seconds=7.5)
    (ours,) = Prepared(_JOB).rows(session, job_id=job.id)
    theirs = session.connection().execute(_JOB, {"job_id": job.id}).one()
    assert tuple(ours) == tuple(theirs)
    assert [type(value) for value in ours] == [type(value) for value in theirs]
    assert ours._fields == theirs._fields
    assert ours.status is theirs.status


def test_what_was_inserted_goes_with_the_transaction(factory: SessionFactory) -> None:
    assert isinstance(_TENANT, Table)
    insert = Prepared(_TENANT.insert())
    values = {"quotas": {"max_queued": 3}, "created_at": datetime.now(UTC)}
    with factory() as other:
        insert.insert(other, [{"id": f"ten_{n}", "name": n, **values} for n in ("a", "b")])
        other.rollback()
    with factory.begin() as other:
        insert.insert(other, [{"id": "ten_c", "name": "c", **values}])
    with factory() as other:
        found = other.execute(select(Tenant.id, Tenant.quotas)).all()
    assert [tuple(row) for row in found] == [("ten_c", {"max_queued": 3})]


def test_a_refusal_is_raised_as_sqlalchemy_raises_it(session: Session, tenant: Tenant) -> None:
    assert isinstance(_TENANT, Table)
    again = {"id": tenant.id, "name": "again", "quotas": {}, "created_at": tenant.created_at}
    with pytest.raises(IntegrityError) as refused:
        Prepared(_TENANT.insert()).insert(session, [again])
    assert not refused.value.connection_invalidated
    assert "again" not in str(refused.value)


def test_a_value_the_database_cannot_hold_is_a_fault_of_the_data(
    on_postgres: Engine,
) -> None:
    with on_postgres.connect() as connection, pytest.raises(DataError):
        Prepared(_JOB).rows(connection, job_id="\0")


def test_a_connection_that_the_server_has_closed_is_given_up(
    on_postgres: Engine, postgres_database: str
) -> None:
    mine = Prepared(text("SELECT pg_backend_pid()"))
    with on_postgres.connect() as connection:
        ((pid,),) = mine.rows(connection)
        execute_on_server(postgres_database, f"SELECT pg_terminate_backend({pid}, 5000)")
        with pytest.raises(OperationalError) as lost:
            mine.rows(connection)
        assert lost.value.connection_invalidated
        assert connection.invalidated
    with on_postgres.connect() as connection:
        assert mine.rows(connection) != [(pid,)]


def test_who_listens_to_an_engine_hears_of_every_statement(
    engine: Engine, make_job: MakeJob, session: Session
) -> None:
    job = make_job()
    heard: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        heard.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    (row,) = Prepared(_JOB).rows(session, job_id=job.id)
    event.remove(engine, "before_cursor_execute", note)
    assert row.id == job.id
    assert [statement.partition(" ")[0] for statement in heard] == ["SELECT"]
