"""How Alembic runs the migrations: one transaction, one migrator at a time, on either database."""

from typing import Any, Literal

from alembic import context
from alembic.autogenerate.api import AutogenContext
from sqlalchemy import JSON, Connection, text

from registry.column_types import UtcDateTime
from registry.db import create_engine
from registry.settings import Settings
from registry.tables import Base

# Any number, as long as it is always the same one: the Postgres advisory lock of migrators.
_MIGRATOR_LOCK = 0x6573_7061


def render_item(kind: str, item: Any, generator: AutogenContext) -> str | Literal[False]:
    """Our own types as the plain ones of the database: migrations stay as written."""
    if kind == "type" and isinstance(item, UtcDateTime):
        return "sa.DateTime(timezone=True)"
    if kind == "type" and isinstance(item, JSON):
        generator.imports.add("from sqlalchemy.dialects import postgresql")
        return 'sa.JSON().with_variant(postgresql.JSONB(), "postgresql")'
    return False


def run(connection: Connection) -> None:
    """Run what the command asks for on this connection."""
    is_postgres = connection.dialect.name == "postgresql"
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        render_as_batch=not is_postgres,
        render_item=render_item,
    )
    with context.begin_transaction():
        if is_postgres:
            # A migration that cannot get its lock at once fails, instead of blocking all behind it.
            connection.execute(text("SET LOCAL lock_timeout = '5s'"))
            connection.execute(text("SET LOCAL statement_timeout = 0"))
            connection.execute(text(f"SELECT pg_advisory_xact_lock({_MIGRATOR_LOCK})"))
        context.run_migrations()


settings = context.config.attributes.get("settings") or Settings()
engine = create_engine(settings)
try:
    with engine.connect() as connection:
        run(connection)
        connection.commit()
finally:
    engine.dispose()
