"""Column types that mean the same on SQLite and Postgres."""

import json
import math
from datetime import UTC, datetime
from typing import Any

from pydantic_core import PydanticSerializationError, to_json
from sqlalchemy import JSON, DateTime, Dialect, Float, String, TypeDecorator
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.dialects.sqlite import DATETIME

# JSON null is never stored: absence is SQL NULL, so `IS NULL` means what it says.
Json = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
Real = Float(53)
Id = String(40)
Sha256 = String(64)


def finite(value: float | None) -> float | None:
    """The number, or None for NaN and the infinities, which JSON and SQLite cannot hold."""
    return value if value is not None and math.isfinite(value) else None


def dump_json(value: Any) -> str:
    """JSON that both databases take: non-finite numbers become null, NUL a replacement mark."""
    try:
        text = to_json(value, inf_nan_mode="null").decode()
    except PydanticSerializationError:
        # Half a character, say.
        return json.dumps(_storable(value))
    return json.dumps(_storable(value)) if "\\u0000" in text else text


def _storable(value: Any) -> Any:
    match value:
        case float():
            return finite(value)
        case str():
            return value.replace("\0", "\ufffd")
        case dict():
            return {_storable(key): _storable(item) for key, item in value.items()}
        case list() | tuple():
            return [_storable(item) for item in value]
        case _:
            return value


def _with_zone(value: datetime | None) -> datetime | None:
    if value is not None and value.tzinfo is None:
        raise ValueError(f"{value!r} has no time zone")
    return value


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC time; SQLite keeps it as fixed-width text, so that it sorts and compares."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        if dialect.name == "sqlite":
            return dialect.type_descriptor(DATETIME())  # type: ignore[no-untyped-call]  # untyped there
        return dialect.type_descriptor(DateTime(timezone=True))

    def bind_processor(self, dialect: Dialect) -> Any:
        """Postgres' driver writes the zone with the time."""
        if dialect.name == "postgresql":
            return _with_zone
        return super().bind_processor(dialect)

    def process_bind_param(
        self,
        value: datetime | None,
        dialect: Dialect,  # noqa: ARG002  # The base class's signature.
    ) -> datetime | None:
        zoned = _with_zone(value)
        return zoned and zoned.astimezone(UTC).replace(tzinfo=None)

    def result_processor(self, dialect: Dialect, coltype: Any) -> Any:
        """Postgres' driver reads aware times in UTC already: connections are set to that."""
        if dialect.name == "postgresql":
            return None
        return super().result_processor(dialect, coltype)

    def process_result_value(
        self,
        value: datetime | None,
        dialect: Dialect,  # noqa: ARG002  # The base class's signature.
    ) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
