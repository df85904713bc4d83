"""Postgres connections that wait for nothing for ever, and are looked at before each use.

The server's own timeouts do not help when nothing it says arrives any more: a network that swallows
packets, or a proxy that hangs, leaves the client reading.
"""

import math
import select
import time
from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen
from sqlalchemy import Engine, event
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.pool import ConnectionPoolEntry

Result = TypeVar("Result")

_TRUSTED_SECONDS = 5.0
_UNSAID = (None,) * 5  # Of the seven fields of PEP 249 that nobody reads here.


class _Cursor(psycopg.Cursor[Any]):
    @property
    def description(self) -> list[Any] | None:
        """Name and type of every column, as plain tuples.

        psycopg's own makes an object of each: a fifth of the time it takes to read one job.
        """
        result = self.pgresult
        if result is None or not result.nfields:
            return None
        return [
            ((result.fname(n) or b"").decode(), result.ftype(n), *_UNSAID)
            for n in range(result.nfields)
        ]


class _Connection(psycopg.Connection[Any]):
    answer_seconds = math.inf

    def wait(self, gen: PQGen[Result], *arguments: Any, **named: Any) -> Result:
        """Wait for the server, but no longer than `answer_seconds`.

        Raises:
            OperationalError: it took longer; the connection is closed.
        """
        return super().wait(self._in_time(gen), *arguments, **named)

    def _in_time(self, gen: PQGen[Result]) -> PQGen[Result]:
        deadline = time.monotonic() + self.answer_seconds
        try:
            wanted = next(gen)
            while True:
                # Nothing is ready when an interval of waiting is over.
                ready = yield wanted
                if not ready and time.monotonic() > deadline:
                    self.close()
                    raise psycopg.OperationalError(
                        f"the database did not answer within {self.answer_seconds:g} s"
                    )
                wanted = gen.send(ready)
        except StopIteration as end:
            result: Result = end.value
            return result


def bound_answers(engine: Engine, answer_seconds: float) -> None:
    """Let the connections that this engine opens give up on a silent server after so long."""

    def connect(_dialect: object, _record: object, positional: list[Any], named: Any) -> Any:
        connection = _Connection.connect(*positional, **named, cursor_factory=_Cursor)
        connection.answer_seconds = answer_seconds
        return connection

    event.listen(engine, "do_connect", connect)


def refuse_dead(engine: Engine) -> None:
    """Let the engine's pool give out no connection that the server has closed.

    Asking the server each time, as the pool itself would, costs as much as a query. A connection
    that was used just now and has nothing to read, not even an end, is as good as asked.
    """
    event.listen(engine, "checkin", _note_use)
    event.listen(engine, "checkout", _ask)


def _note_use(_connection: Any, entry: ConnectionPoolEntry) -> None:
    entry.info["used_at"] = time.monotonic()


def _ask(connection: Any, entry: ConnectionPoolEntry, _proxy: object) -> None:
    used_at = entry.info.get("used_at")
    if used_at is None:
        return
    try:
        if time.monotonic() - used_at < _TRUSTED_SECONDS and _is_silent(connection):
            return
        connection.execute("")
        connection.rollback()
    except psycopg.Error as error:
        # The others are as old as this one.
        raise InvalidatePoolError from error


def _is_silent(connection: psycopg.Connection[Any]) -> bool:
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return not poll.poll(0)
