"""Runs `espalier up` as a process of its own, the way a user would."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from espalier.connection import Connection, read_key, read_local_server
from espalier.supervisor import die_with_parent

_START_SECONDS = 150.0
_STOP_SECONDS = 180.0


class ServerDidNotStart(Exception):
    """`espalier up` ended, or never became ready; the message is the end of its log."""


@contextmanager
def running_server(data_dir: Path, *, allowed_paths: tuple[Path, ...]) -> Iterator[Connection]:
    """The service on a free port, stopped cleanly at the end."""
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    command = [sys.executable, "-m", "espalier", "up", "--port", "0", "--data-dir", str(data_dir)]
    for path in allowed_paths:
        command += ["--allow-path", str(path)]
    log_path = data_dir / "up.log"
    with log_path.open("wb") as log:
        # A session of its own: on Ctrl-C this process ends it, in order, instead of the terminal.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=die_with_parent(),
        )
        try:
            yield _wait_until_ready(process, data_dir, log_path)
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Let the running increment finish; a Ctrl-C meanwhile is passed on and hurries it."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP_SECONDS)
    except KeyboardInterrupt:
        process.send_signal(signal.SIGTERM)
        process.wait(_STOP_SECONDS)


def _wait_until_ready(
    process: subprocess.Popen[bytes], data_dir: Path, log_path: Path
) -> Connection:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        server = read_local_server(data_dir)
        if server is not None and server.pid == process.pid:
            return Connection(url=server.url, api_key=read_key(data_dir))
        time.sleep(0.1)
    tail = log_path.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
    raise ServerDidNotStart("\n".join(tail))
