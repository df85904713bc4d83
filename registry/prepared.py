"""Statements of the routes asked most: put into words once, then handed to Postgres' driver.

Beside what the driver does for a statement, SQLAlchemy does as much again: a context of its
execution, its result, its rows. Here its words and its types are used without these. On SQLite,
and where somebody listens for the statements of an engine, they go through SQLAlchemy.
"""

from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import JSON, Connection, Dialect, Float, Insert, Row, Select, TextClause
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from sqlalchemy.types import TypeEngine

from registry.column_types import dump_json

Reader = Session | Connection
"""What queries for rows, not entities, can be sent through."""

_Statement = Select[*tuple[Any, ...]] | Insert | TextClause
_Convert = Callable[[Any], Any]
_Rows = Sequence[Row[*tuple[Any, ...]]]


def connection_of(reader: Reader) -> Connection:
    """The connection of a session's transaction: past it nothing is written that it still holds."""
    return reader.connection() if isinstance(reader, Session) else reader


class Prepared:
    """One statement, whose parameters are named and each stand for one value."""

    def __init__(self, statement: _Statement) -> None:
        self._statement = statement
        self._words: _Words | None = None

    def rows(self, reader: Reader, **values: Any) -> _Rows:
        """Every row that it finds, with its columns as attributes."""
        connection = connection_of(reader)
        if _is_watched(connection):
            return connection.execute(self._statement, values).all()
        words = self._words_for(connection.dialect)
        return words.read(_send(connection, words.text, words.bound(values)))

    def insert(self, reader: Reader, rows: Sequence[Mapping[str, Any]]) -> None:
        """Insert these rows, each with a value for every column."""
        connection = connection_of(reader)
        if _is_watched(connection):
            connection.execute(self._statement, rows)
            return
        words = self._words_for(connection.dialect)
        for row in rows:
            _send(connection, words.text, words.bound(row))

    def _words_for(self, dialect: Dialect) -> "_Words":
        if self._words is None:
            self._words = _in_words(self._statement, dialect)
        return self._words


@dataclass(frozen=True)
class _Words:
    """A statement as Postgres' driver takes it.

    `fixed` are the parameters that it brings itself, `into` makes what the driver is given of a
    value, `out_of` a value of what the driver gives, each where there is something to be made.
    """

    text: str
    fixed: Mapping[str, Any]
    into: Sequence[tuple[str, _Convert]]
    out_of: Sequence[tuple[int, _Convert]]
    record: Callable[[Sequence[Any]], Any]

    def bound(self, values: Mapping[str, Any]) -> dict[str, Any]:
        sent = {**self.fixed, **values}
        for name, convert in self.into:
            sent[name] = convert(sent[name])
        return sent

    def read(self, cursor: Any) -> _Rows:
        found = cursor.fetchall()
        if not self.out_of:
            return [self.record(row) for row in found]
        return [self.record(self._converted(row)) for row in found]

    def _converted(self, row: Sequence[Any]) -> list[Any]:
        values = list(row)
        for place, convert in self.out_of:
            values[place] = convert(values[place])
        return values


def _in_words(statement: _Statement, dialect: Dialect) -> _Words:
    columns = list(statement.selected_columns) if isinstance(statement, Select) else []
    compiled = statement.compile(dialect=dialect)
    params = compiled.params
    into = {name: bind.type for name, bind in compiled.binds.items()}
    return _Words(
        text=str(compiled),
        fixed={name: value for name, value in params.items() if value is not None},
        into=[(name, one) for name, kind in into.items() if (one := _binding(kind, dialect))],
        out_of=[
            (place, one)
            for place, column in enumerate(columns)
            if (one := _reading(column.type, dialect))
        ],
        record=_record([str(column.key) for column in columns]),
    )


def _binding(kind: TypeEngine[Any], dialect: Dialect) -> _Convert | None:
    if isinstance(kind, JSON):
        # As text, which the statement casts: the driver's own way wraps it to find that out.
        return lambda value: None if value is None else dump_json(value)
    return kind.dialect_impl(dialect).bind_processor(dialect)


def _reading(kind: TypeEngine[Any], dialect: Dialect) -> _Convert | None:
    # What number it has read, the driver knows.
    number = isinstance(kind, Float)
    return None if number else kind.dialect_impl(dialect).result_processor(dialect, None)


def _record(names: Sequence[str]) -> Callable[[Sequence[Any]], Any]:
    named: Any = namedtuple("Record", names) if names else None
    return named._make if names else tuple


def _is_watched(connection: Connection) -> bool:
    # The engine's own: a connection's puts its own listeners before them, at twice the cost.
    heard = connection.engine.dispatch
    return bool(
        connection.dialect.name != "postgresql"
        or heard.before_cursor_execute
        or heard.after_cursor_execute
    )


def _send(connection: Connection, text: str, values: Mapping[str, Any]) -> Any:
    """The cursor that has sent it, in the connection's transaction.

    Raises:
        DBAPIError: as SQLAlchemy raises it.
    """
    if not connection.in_transaction():
        connection.begin()
    driver: Any = connection.connection.driver_connection
    cursor = _cursor_of(connection, driver)
    try:
        return cursor.execute(text, values)
    except connection.dialect.loaded_dbapi.Error as error:
        gone = connection.dialect.is_disconnect(error, driver, cursor)
        if gone:
            connection.invalidate(error)
        raise DBAPIError.instance(
            text,
            None,
            error,
            connection.dialect.loaded_dbapi.Error,
            hide_parameters=True,
            connection_invalidated=gone,
            dialect=connection.dialect,
        ) from error


_KEPT = "cursor of prepared statements"


def _cursor_of(connection: Connection, driver: Any) -> Any:
    """The driver's connection has one for all: making one takes a quarter as long as a statement.

    What it found is read before the next is sent.
    """
    kept = connection.info
    if _KEPT not in kept:
        kept[_KEPT] = driver.cursor()
    return kept[_KEPT]
