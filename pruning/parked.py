"""Waiting for a run with everything imported, so that it begins at once when it is wanted."""

import json
import os
import select
import sys
from pathlib import Path

_QUIET_SECONDS = 2.0


def import_everything() -> None:
    """Import what a run needs, once nothing else starts; that takes seconds, and no device is
    touched."""
    # A service that starts has better use for its processors; an order ends the wait.
    select.select([sys.stdin], [], [], _QUIET_SECONDS)
    import pruning.pipeline  # noqa: F401


def wait_for_order() -> list[str] | None:
    """The arguments of `run`, once one line of JSON came on standard input; None if it ended first.

    The line is `{"arguments": […], "log": PATH}`; what is printed from then on goes to `log`.
    """
    line = sys.stdin.buffer.readline()
    if not line:
        return None
    order = json.loads(line)
    _print_to(Path(order["log"]))
    arguments: list[str] = order["arguments"]
    return arguments


def _print_to(log: Path) -> None:
    """Put the process's own descriptors elsewhere: libraries in C write to them too."""
    with log.open("ab") as output, Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
