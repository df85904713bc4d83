"""One child kept ready: it has imported everything and waits to be told what to run.

Imports take a child longer than all that happens between a request and its first event. The ready
one is used once and replaced when its slice is over; it knows nothing before it is told, and dies
with its worker like any child.
"""

import json
import logging
import os
import subprocess
import threading
from contextlib import suppress
from dataclasses import dataclass

from worker.child import Child, EventPipe, Invocation, offline_environment, spawn
from worker.child import start as start_cold

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Parked:
    process: subprocess.Popen[bytes]
    events: EventPipe

    def discard(self) -> None:
        self.process.kill()
        # Its exit closes the pipe of orders too, also where one could not be delivered.
        with suppress(BrokenPipeError), self.process:
            os.close(self.events.read_fd)


class Parking:
    """Room for one waiting child of `command`; where not `enabled`, every child starts cold."""

    def __init__(self, command: tuple[str, ...], *, enabled: bool) -> None:
        self._command = command
        self._environment = offline_environment(os.environ)
        self._enabled = enabled
        self._lock = threading.Lock()
        self._parked: _Parked | None = None

    def park(self) -> None:
        """Start a child that waits, unless one does; it dies with the thread that calls this."""
        with self._lock:
            if not self._enabled or (self._parked and self._parked.process.poll() is None):
                return
            self._clear()
            self._parked = _Parked(
                *spawn(
                    lambda _: [*self._command, "wait"],
                    self._environment,
                    stdin=subprocess.PIPE,
                    output=None,
                )
            )

    def start(self, invocation: Invocation) -> Child:
        """The waiting child, told to run this, or a fresh one if that cannot be."""
        with self._lock:
            # What a run may reach is decided by its environment, which no process can change.
            if (invocation.command, invocation.environment) == (self._command, self._environment):
                parked, self._parked = self._parked, None
            else:
                parked = None
        if parked is not None:
            if _tell(parked, invocation):
                return Child(parked.process, parked.events.read_fd, invocation.log_path)
            parked.discard()
        return start_cold(invocation)

    def close(self) -> None:
        """End the child that waits, and let none wait again."""
        with self._lock:
            self._enabled = False
            self._clear()

    def _clear(self) -> None:
        if self._parked is not None:
            self._parked.discard()
            self._parked = None


def _tell(parked: _Parked, invocation: Invocation) -> bool:
    """Say what to run; whether anyone was there to hear it."""
    order = {
        "arguments": invocation.run_arguments(parked.events.child_fd),
        "log": str(invocation.log_path.absolute()),
    }
    invocation.log_path.parent.mkdir(parents=True, exist_ok=True)
    invocation.log_path.touch()
    orders = parked.process.stdin
    assert orders is not None  # because of PIPE
    if parked.process.poll() is not None:
        return False
    try:
        with orders:
            orders.write(json.dumps(order).encode() + b"\n")
    except BrokenPipeError:
        logger.warning("the waiting child was gone; starting another")
        return False
    return True
