"""Starting the processes of a run that is spread over several, and watching over them.

They get what torchrun gives its own, so that torchrun may start them as well. They are not started
by it because it kills its processes 30 seconds after it was asked to stop: a run then keeps its
state first, however long that takes.
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from pruning.events import Event, RunFailed, parse_event

Emit = Callable[[Event], None]
FAILURE_FILE = "ESPALIER_FAILURE_FILE"
"""Where a process of a run says why it failed: whoever started it reports one failure of all."""

_PR_SET_PDEATHSIG = 1
_POLL_SECONDS = 0.1
_GRACE_SECONDS = 10.0
"""When one rank has failed the others notice and end, unless they wait for it on the device."""


def is_rank(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is one of those that share a run."""
    return "RANK" in environment


def die_with_parent() -> None:
    """Let the kernel end this process when the thread that started it is gone (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def run_ranks(
    count: int,
    arguments: Sequence[str],
    *,
    emit: Emit,
    stop: Callable[[], bool],
    pass_fds: Sequence[int] = (),
) -> list[int]:
    """Run `python -m pruning ARGUMENTS` as `count` processes to their end; their exit codes.

    When `stop` turns true they are asked to stop. When one fails the others are ended and the
    failure is emitted; the first rank emits everything else itself.
    """
    with tempfile.TemporaryDirectory(prefix="ranks-") as directory:
        failures = [Path(directory) / str(rank) for rank in range(count)]
        port = _free_port()
        ranks = [
            subprocess.Popen(
                [sys.executable, "-m", "pruning", *arguments],
                env={
                    **os.environ,
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "WORLD_SIZE": str(count),
                    "LOCAL_WORLD_SIZE": str(count),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                    FAILURE_FILE: str(failures[rank]),
                },
                stdin=subprocess.DEVNULL,
                pass_fds=pass_fds,
            )
            for rank in range(count)
        ]
        try:
            failed = _watch(ranks, stop)
        finally:
            _end(ranks)
        codes = [rank.wait() for rank in ranks]
        if failed:
            emit(_failure(failures, failed, count))
    return codes


def _watch(ranks: Sequence[subprocess.Popen[bytes]], stop: Callable[[], bool]) -> dict[int, int]:
    """Wait until all have ended, or one has failed and the others had time to notice.

    The exit codes of those that were seen to fail first.
    """
    asked = False
    failed: dict[int, int] = {}
    failed_at = 0.0
    while any(rank.poll() is None for rank in ranks):
        if stop() and not asked:
            asked = True
            for rank in ranks:
                rank.send_signal(signal.SIGTERM)
        if not failed and (failed := _failed(ranks)):
            failed_at = time.monotonic()
        if failed and time.monotonic() - failed_at > _GRACE_SECONDS:
            return failed
        time.sleep(_POLL_SECONDS)
    return failed or _failed(ranks)


def _failed(ranks: Sequence[subprocess.Popen[bytes]]) -> dict[int, int]:
    codes = {rank: process.poll() for rank, process in enumerate(ranks)}
    return {rank: code for rank, code in codes.items() if code}


def _end(ranks: Sequence[subprocess.Popen[bytes]]) -> None:
    for rank in ranks:
        if rank.poll() is None:
            rank.kill()


def _failure(files: Sequence[Path], failed: Mapping[int, int], count: int) -> RunFailed:
    """What to report: a rank's own reason before what the others saw of it."""
    found = [failure for path in files if (failure := _read(path)) is not None]
    for failure in found:
        if failure.code != "internal":
            return failure
    # A signal came from outside; the others saw only that the connection broke.
    code, rank = min((code, rank) for rank, code in failed.items())
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
    seen = "".join(f"; {failure.message}" for failure in found[:1])
    return RunFailed(
        code="rank_lost", message=f"rank {rank} of {count} {how}{seen}", retryable=True
    )


def _read(path: Path) -> RunFailed | None:
    try:
        event = parse_event(path.read_bytes())
    except (OSError, ValidationError):
        return None
    return event if isinstance(event, RunFailed) else None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
