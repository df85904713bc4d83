"""Keeps a few child processes running and their output readable, in one thread."""

import ctypes
import logging
import logging.handlers
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO

_PR_SET_PDEATHSIG = 1
_READ_BYTES = 1 << 16
_LOG_BYTES = 10 << 20
_MAX_BACKOFF_SECONDS = 30.0
# A child that ran this long before it ended did not end because it cannot start.
_HEALTHY_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Service:
    """A program that should always be running; `stop_seconds` is from SIGTERM to SIGKILL."""

    name: str
    command: tuple[str, ...]
    stop_seconds: float


@dataclass(kw_only=True)
class _Child:
    service: Service
    log: logging.Handler
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    failures: int = 0
    not_before: float = 0.0
    partial_line: bytes = field(default=b"", repr=False)


class Supervisor:
    """Starts services, restarts those that end, stops them in order.

    `say(service_name, line)` gets every line they print, which also goes to `log_dir/NAME.log`.
    """

    def __init__(
        self,
        services: Sequence[Service],
        *,
        environment: Mapping[str, str],
        directory: Path,
        log_dir: Path,
        say: Callable[[str, str], None],
    ) -> None:
        self._environment = environment
        self._directory = directory
        self._say = say
        self._selector = selectors.DefaultSelector()
        self._children = [
            _Child(service=service, log=_open_log(log_dir / f"{service.name}.log"))
            for service in services
        ]

    def start(self) -> None:
        """Start every service."""
        for child in self._children:
            self._start(child)

    def step(self, timeout_seconds: float) -> None:
        """Pass on what the children print for up to `timeout_seconds`; restart those that ended."""
        self._pump(timeout_seconds)
        now = time.monotonic()
        for child in self._children:
            if child.process is not None and child.process.poll() is not None:
                self._note_end(child, now)
            if child.process is None and now >= child.not_before:
                self._start(child)

    @property
    def most_failures(self) -> int:
        """How often in a row the worst child ended soon after its start."""
        return max(child.failures for child in self._children)

    def stop(self, hurry: Callable[[], bool]) -> None:
        """End the services, the first named first; once `hurry()` is true none gets more time."""
        for child in self._children:
            self._stop(child, hurry)
            child.log.close()
        self._selector.close()

    def _start(self, child: _Child) -> None:
        # preexec_fn is safe here: nothing in this process runs a second thread.
        child.process = subprocess.Popen(
            child.service.command,
            cwd=self._directory,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # the terminal's Ctrl-C is for us alone
            preexec_fn=die_with_parent(),
        )
        child.started_at = time.monotonic()
        output = child.process.stdout
        assert output is not None  # because of PIPE
        os.set_blocking(output.fileno(), False)
        self._selector.register(output, selectors.EVENT_READ, child)

    def _note_end(self, child: _Child, now: float) -> None:
        assert child.process is not None
        healthy = now - child.started_at >= _HEALTHY_SECONDS
        child.failures = 1 if healthy else child.failures + 1
        delay = min(2.0 ** (child.failures - 1), _MAX_BACKOFF_SECONDS)
        child.not_before = now + delay
        self._note(child, f"ended with {_ending(child.process.returncode)}; again in {delay:.0f} s")
        child.process = None

    def _stop(self, child: _Child, hurry: Callable[[], bool]) -> None:
        process = child.process
        if process is None:
            return
        process.terminate()
        deadline = time.monotonic() + child.service.stop_seconds
        while process.poll() is None and time.monotonic() < deadline and not hurry():
            self._pump(0.1)
        if process.poll() is None:
            self._note(child, "did not stop in time; killed")
        _kill_group(process.pid)
        process.wait()
        self._pump(0.0)

    def _pump(self, timeout_seconds: float) -> None:
        if not self._selector.get_map():
            time.sleep(timeout_seconds)
            return
        for key, _ in self._selector.select(timeout_seconds):
            self._read(key.data, key.fileobj)  # type: ignore[arg-type]  # we registered the pipe

    def _read(self, child: _Child, output: IO[bytes]) -> None:
        piece = os.read(output.fileno(), _READ_BYTES)
        *lines, child.partial_line = (child.partial_line + piece).split(b"\n")
        if not piece:
            self._selector.unregister(output)
            output.close()
            lines = [child.partial_line] if child.partial_line else []
            child.partial_line = b""
        for line in lines:
            self._note(child, line.decode(errors="replace").rstrip("\r"))

    def _note(self, child: _Child, line: str) -> None:
        child.log.emit(logging.LogRecord("", logging.INFO, "", 0, line, None, None))
        self._say(child.service.name, line)


def die_with_parent() -> Callable[[], None]:
    """For `preexec_fn`: the kernel kills the child when the thread that started it is gone."""
    return partial(_tie_to_parent, ctypes.CDLL(None), os.getpid())


def _tie_to_parent(libc: ctypes.CDLL, parent_pid: int) -> None:
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # it died before the line above
        os._exit(1)


def _open_log(path: Path) -> logging.Handler:
    path.parent.mkdir(parents=True, exist_ok=True)
    return logging.handlers.RotatingFileHandler(path, maxBytes=_LOG_BYTES, backupCount=2)


def _kill_group(process_id: int) -> None:
    try:
        os.killpg(process_id, signal.SIGKILL)
    except ProcessLookupError:
        return


def _ending(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
