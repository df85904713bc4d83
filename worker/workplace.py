"""What every step of a worker needs: settings, database, store, name, and whether to stop."""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import TypeVar

from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.orm import Session

from registry.db import SessionFactory, create_engine, session_factory, transaction
from registry.settings import Settings
from registry.storage import ArtifactStore, store_for
from registry.workers import Identity
from worker.parking import Parking

_FIRST_PAUSE_SECONDS = 0.2
_LAST_PAUSE_SECONDS = 5.0

logger = logging.getLogger(__name__)
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Workplace:
    """Built once per worker process; `stopping` is set when the process is asked to end."""

    settings: Settings
    factory: SessionFactory
    store: ArtifactStore
    identity: Identity
    parking: Parking = field(default_factory=lambda: Parking((), enabled=False))
    stopping: threading.Event = field(default_factory=threading.Event)

    def apply(
        self, write: Callable[[Session], Result], *, given_up: Callable[[], bool] = lambda: False
    ) -> Result:
        """Run `write` in a transaction of its own, again and again while the database is away.

        Raises:
            OperationalError: it stayed away for `database_patience_seconds`, or `given_up` said so.
        """
        deadline = time.monotonic() + self.settings.database_patience_seconds
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                with transaction(self.factory) as session:
                    return write(session)
            except (OperationalError, InterfaceError) as error:
                if time.monotonic() > deadline or given_up():
                    raise
                logger.warning("database is away, trying again: %s", type(error.orig).__name__)
            time.sleep(pause)
            pause = min(2 * pause, _LAST_PAUSE_SECONDS)


def open_workplace(settings: Settings) -> Workplace:
    """The workplace of this process; it connects to nothing yet."""
    return Workplace(
        settings=settings,
        factory=session_factory(create_engine(settings)),
        store=store_for(settings.artifacts_url, reserve_bytes=settings.storage_reserve_bytes),
        identity=identify(settings),
        parking=Parking(settings.child_command, enabled=settings.park_child),
    )


def identify(settings: Settings) -> Identity:
    """This process, under a name that no other has at the same time."""
    host = socket.gethostname()
    return Identity(
        id=settings.worker_name or f"{host}:{os.getpid()}",
        host=host,
        pid=os.getpid(),
        version=_version(),
        queues=settings.queues,
    )


def _version() -> str:
    try:
        return version("espalier")
    except PackageNotFoundError:
        return "unknown"
