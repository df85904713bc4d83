"""A Postgres connection that does not wait for ever.

The server's own timeouts do not help when nothing it says arrives any more: a network that swallows
packets, or a proxy that hangs, leaves the client reading.
"""

import math
import time
from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen
from sqlalchemy import Engine, event

Result = TypeVar("Result")


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
        connection = _Connection.connect(*positional, **named)
        connection.answer_seconds = answer_seconds
        return connection

    event.listen(engine, "do_connect", connect)
