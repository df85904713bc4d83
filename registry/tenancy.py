"""The second wall between tenants: Postgres itself shows a request only its own tenant's rows.

What a request does runs as the role `espalier_tenant`, to which every table with a tenant's rows
has a policy. Workers and the sweeper keep the role that owns the tables, which no policy binds.
SQLite has no such thing; there the tenant in every query is the only wall.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, FromClause, column, select, table, text
from sqlalchemy.orm import Session

from registry.column_types import UtcDateTime
from registry.db import SessionFactory, dialect_of, reading, transaction
from registry.prepared import Prepared, Reader
from registry.status import JobStatus
from registry.tables import Job

ROLE = "espalier_tenant"
SETTING = "espalier.tenant"
# Both last until the transaction ends, so that a pooled connection forgets them.
_CONFINE = Prepared(
    text(f"SELECT set_config('role', '{ROLE}', true), set_config('{SETTING}', :tenant_id, true)")
)

_QUEUE_PLACES = table(
    "queue_places", column("queue"), column("priority"), column("queued_at", UtcDateTime())
)


def queue_places(dialect: str) -> FromClause:
    """Queue, priority and time of every job that waits, whoever's it is, and no more than that."""
    if dialect == "postgresql":
        return _QUEUE_PLACES.alias("place")
    waiting = select(Job.queue, Job.priority, Job.queued_at).where(Job.status == JobStatus.QUEUED)
    return waiting.subquery("place")


def confine(session: Reader, tenant_id: str) -> None:
    """From here to the end of the transaction, only this tenant's rows are there."""
    if dialect_of(session) == "postgresql":
        _CONFINE.rows(session, tenant_id=tenant_id)


@contextmanager
def transaction_of(factory: SessionFactory, tenant_id: str) -> Iterator[Session]:
    """A transaction that sees and writes one tenant's rows."""
    with transaction(factory) as session:
        confine(session, tenant_id)
        yield session


@contextmanager
def reading_of(factory: SessionFactory, tenant_id: str) -> Iterator[Session]:
    """A session that only reads, and only one tenant's rows."""
    with reading(factory) as session:
        confine(session, tenant_id)
        yield session


@contextmanager
def writing_of(factory: SessionFactory, tenant_id: str) -> Iterator[Connection]:
    """A transaction on one tenant's rows without a session: a third of the cost."""
    with factory.kw["bind"].begin() as connection:
        confine(connection, tenant_id)
        yield connection


@contextmanager
def looking_of(factory: SessionFactory, tenant_id: str) -> Iterator[Connection]:
    """A connection that only reads, and only one tenant's rows: half the cost of a session."""
    with factory.kw["bind"].connect() as connection:
        connection.execution_options(reading=True)
        confine(connection, tenant_id)
        yield connection
