"""Kombu's filesystem transport with whole messages: the broker of a service on one machine.

The original opens a message under its final name and then writes it, so that a reader may find it
empty, and the worker ends with a JSON error; its table of bindings has the same gap. Here both
appear by renaming, and a message that is being taken stays in the broker's own directory.
"""

# mypy: disable-error-code="no-untyped-call"
# Kombu is untyped.

import fcntl
import json
import logging
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty
from typing import Any

from kombu.transport import TRANSPORT_ALIASES, filesystem
from kombu.utils.json import dumps, loads

SCHEME = "spool"
_DRAIN_SECONDS = 0.2

logger = logging.getLogger(__name__)


class Channel(filesystem.Channel):
    """A channel whose files are complete or absent."""

    def _put(self, queue: str, message: Any, **_: Any) -> None:  # type: ignore[override]
        folder = Path(self.data_folder_out)
        name = f"{time.time_ns():020d}_{uuid.uuid4().hex}.{queue}.msg"
        _write(folder / name, dumps(message))

    def _get(self, queue: str, timeout: float | None = None) -> Any:  # noqa: ARG002  # Base class.
        folder = Path(self.data_folder_in)
        for name in sorted(path.name for path in folder.iterdir()):
            if name.startswith(".") or name.partition(".")[2] != f"{queue}.msg":
                continue
            taken = folder / f".{name}.taken"
            try:
                (folder / name).rename(taken)
            except FileNotFoundError:
                continue  # Another worker was faster.
            text = taken.read_text()
            taken.unlink()
            try:
                return loads(text)
            except json.JSONDecodeError:
                logger.warning("message %s is not whole and is dropped", name)
        raise Empty

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str, queue: str) -> None:
        binding = filesystem.exchange_queue_t(routing_key or "", pattern or "", queue or "")
        with _locked(Path(self.control_folder)):
            table = self.get_table(exchange)
            if binding not in table:
                _write(Path(self._exchange_file(exchange)), dumps([binding, *table]))


class Transport(filesystem.Transport):
    """The transport of `spool://` URLs."""

    Channel = Channel

    def drain_events(  # type: ignore[override]  # As Kombu's own virtual transports have it.
        self, connection: Any, timeout: float | None = None
    ) -> None:
        """Wait for messages, but never for long.

        Celery asks for two seconds, and looks only then whether its worker was told to end.
        """
        short = None if timeout is None else min(timeout, _DRAIN_SECONDS)
        super().drain_events(connection, short)


def register() -> None:
    """Make `spool://` known to Kombu in this process."""
    TRANSPORT_ALIASES[SCHEME] = f"{__name__}:Transport"


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    temporary.write_text(text)
    temporary.replace(path)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
