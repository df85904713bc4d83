"""Engines, sessions and transactions for both databases.

Registry functions take a session and never commit; the edge (a request, a worker step, a command)
opens one `transaction` and everything in it happens or nothing does.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from typing import Any

import sqlalchemy
from pydantic_core import from_json
from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Table,
    event,
    insert,
    inspect,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker
from sqlalchemy.pool import ConnectionPoolEntry

from registry.column_types import dump_json
from registry.prepared import Prepared, Reader
from registry.settings import Settings

SQLITE_BUSY_SECONDS = 15
# A process that is frozen, or cut off, in the middle of a transaction must not hold up all others.
POSTGRES_OPTIONS = (
    "-c timezone=utc -c statement_timeout=30s -c lock_timeout=10s "
    "-c idle_in_transaction_session_timeout=15s"
)

SessionFactory = sessionmaker[Session]


def create_engine(settings: Settings) -> Engine:
    """The engine for `settings.database_url`; it connects on first use."""
    url = make_url(settings.database_url)
    if url.get_backend_name() == "sqlite":
        return _sqlite_engine(settings.database_url)
    # Only here: a service on SQLite is smaller and starts sooner without the driver of Postgres.
    from registry.bounded import bound_answers, refuse_dead

    engine = sqlalchemy.create_engine(
        url,
        hide_parameters=True,
        json_serializer=dump_json,
        json_deserializer=from_json,
        pool_size=10,
        max_overflow=20,
        pool_timeout=10,
        # The one used last: its server process is warm, and it has prepared what it is asked.
        pool_use_lifo=True,
        connect_args={
            "connect_timeout": 5,
            "options": POSTGRES_OPTIONS,
            "tcp_user_timeout": 5000,
        },
    )
    bound_answers(engine, settings.database_answer_seconds)
    refuse_dead(engine)
    return engine


def _sqlite_engine(url: str) -> Engine:
    database = make_url(url).database
    if database and database != ":memory:":
        Path(database).parent.mkdir(parents=True, exist_ok=True)
    engine = sqlalchemy.create_engine(
        url,
        hide_parameters=True,
        json_serializer=dump_json,
        connect_args={"timeout": SQLITE_BUSY_SECONDS},
    )
    event.listen(engine, "connect", _configure_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _configure_sqlite(connection: Any, _entry: ConnectionPoolEntry) -> None:
    # The driver's own transaction handling begins late and commits around DDL; `_begin_sqlite`
    # decides.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={SQLITE_BUSY_SECONDS * 1000}")
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # A deferred transaction that turns into a writer fails at once with "database is locked" when
    # another wrote in between, whatever the busy timeout; one that takes the write lock first waits
    # its turn.
    reading = connection.get_execution_options().get("reading", False)
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")


def session_factory(engine: Engine) -> SessionFactory:
    """Sessions whose objects stay readable after the commit."""
    return sessionmaker(engine, expire_on_commit=False)


@contextmanager
def transaction(factory: SessionFactory) -> Iterator[Session]:
    """A session that commits at the end of the block, or rolls back with its error."""
    with factory.begin() as session:
        yield session


@contextmanager
def reading(factory: SessionFactory) -> Iterator[Session]:
    """A session that only reads: on SQLite it does not queue behind writers."""
    with factory() as session:
        session.connection(execution_options={"reading": True})
        yield session


@contextmanager
def session_on(writer: Reader) -> Iterator[Session]:
    """A session in the writer's own transaction; what it holds is written when the block ends."""
    if isinstance(writer, Session):
        yield writer
        return
    with Session(writer, expire_on_commit=False) as session:
        yield session
        session.flush()


def dialect_of(reader: Reader) -> str:
    """`postgresql` or `sqlite`."""
    bind = reader.get_bind() if isinstance(reader, Session) else reader
    return bind.dialect.name


_CLOCK = Prepared(text("SELECT clock_timestamp()"))


def database_now(reader: Reader) -> datetime:
    """The time by the clock that all processes share: the Postgres server's, or this host's."""
    if dialect_of(reader) == "postgresql":
        now: datetime
        ((now,),) = _CLOCK.rows(reader)
        return now.astimezone(UTC)
    return datetime.now(UTC)


def is_full(error: DBAPIError) -> bool:
    """Whether it failed because the disk of the database is full."""
    # 53100 is `disk_full` in Postgres' table of error codes.
    sqlite_name = getattr(error.orig, "sqlite_errorname", None)
    return sqlite_name == "SQLITE_FULL" or getattr(error.orig, "sqlstate", None) == "53100"


def insert_rows(
    reader: Reader, model: type[DeclarativeBase], rows: Sequence[Mapping[str, Any]]
) -> None:
    """Insert new rows of one table at once, past the session, which neither keeps nor orders them.

    A row is the values of its attributes; what it does not say becomes the column's default.
    """
    _insert_into(model).insert(reader, [_by_column(model, row) for row in rows])


def insert_row(
    reader: Reader, model: type[DeclarativeBase], said: Mapping[str, Any]
) -> dict[str, Any]:
    """The same for one row; the value of every attribute is returned."""
    values = _by_column(model, said)
    _insert_into(model).insert(reader, [values])
    return {attribute: values[column] for column, attribute, _ in _columns(model)}


def _by_column(model: type[DeclarativeBase], said: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a new row by the names of its columns, defaults where it says nothing."""
    return {
        column: said[attribute] if attribute in said else default()
        for column, attribute, default in _columns(model)
    }


@cache
def _columns(model: type[DeclarativeBase]) -> Sequence[tuple[str, str, Callable[[], Any]]]:
    """Every column with its attribute, and what it is in a row that does not say it."""
    return tuple(
        (one.columns[0].key, one.key, _default(one.columns[0]))
        for one in inspect(model).column_attrs
    )


def _default(column: ColumnElement[Any]) -> Callable[[], Any]:
    given = getattr(column, "default", None)
    if given is None:
        return lambda: None
    # SQLAlchemy wraps a function so that it takes the context of a statement.
    return partial(given.arg, None) if given.is_callable else lambda: given.arg


@cache
def _insert_into(model: type[DeclarativeBase]) -> Prepared:
    table = model.__table__
    assert isinstance(table, Table)
    return Prepared(insert(table))


def insert_unless_exists(
    session: Session, table: type[DeclarativeBase], values: Mapping[str, Any]
) -> bool:
    """Insert a row, or leave what stands under the same key; whether it was inserted.

    On Postgres this waits for a concurrent transaction that inserts the same key.
    """
    dialect = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
    statement = dialect.insert(table).values(**values).on_conflict_do_nothing()
    # Without the option the count of an INSERT is -1 on Postgres.
    result = session.execute(statement, execution_options={"preserve_rowcount": True})
    return bool(result.rowcount == 1)  # type: ignore[attr-defined]  # Result[Any] of a DML is a CursorResult
