"""What all tables share: the names of constraints, the types of columns, conditions of indexes."""

from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import BigInteger, Index, MetaData, text
from sqlalchemy.orm import DeclarativeBase

from registry.column_types import Json, Real, UtcDateTime
from registry.status import LEASED

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}
_LEASED_SQL = ", ".join(f"'{status}'" for status in sorted(LEASED))
IS_LEASED = f"status IN ({_LEASED_SQL})"
IS_QUEUED = "status = 'queued'"
"""Conditions of partial indexes: SQLite uses one only for a query that says the very same."""


class Base(DeclarativeBase):
    """Base of all rows."""

    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        datetime: UtcDateTime(),
        dict[str, Any]: Json,
        list[Any]: Json,
        float: Real,
        int: BigInteger(),
    }


def partial(name: str, *columns: str, where: str) -> Index:
    """An index over the rows that satisfy a condition, on either database."""
    return Index(name, *columns, postgresql_where=text(where), sqlite_where=text(where))
