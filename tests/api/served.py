"""The API as users have it: a process of its own behind a port, on a migrated database."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from registry.settings import Settings
from tests.servers import die_with_parent, free_port

_START_SECONDS = 60.0
_STOP_SECONDS = 20.0


@dataclass(frozen=True)
class Served:
    """Where the API answers, and the process that does."""

    url: str
    pid: int


@contextmanager
def serving(settings: Settings, environment: Mapping[str, str] | None = None) -> Iterator[Served]:
    """Serve the API on a free port of the loopback until the block ends; it must end by itself."""
    port = free_port()
    log = settings.data_dir.parent / f"api-{port}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "uvicorn", "--factory", "api.main:create_app"),
            *("--host", "127.0.0.1", "--port", str(port), "--no-access-log"),
            *("--timeout-graceful-shutdown", "5"),
        ],
        env={**_environment(settings), **(environment or {})},
        stdout=log.open("wb"),
        stderr=subprocess.STDOUT,
        preexec_fn=die_with_parent(),
    )
    served = Served(f"http://127.0.0.1:{port}", process.pid)
    try:
        _wait_until_up(served.url, process, log)
        yield served
        process.send_signal(signal.SIGTERM)
        assert process.wait(_STOP_SECONDS) in (0, -signal.SIGTERM), log.read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _environment(settings: Settings) -> dict[str, str]:
    given = {
        "DATA_DIR": settings.data_dir,
        "DATABASE_URL": settings.database_url,
        "ARTIFACTS_URL": settings.artifacts_url,
        "HUB_SECONDS": 0,
        "POLL_SECONDS": 0.02,
        "RATE_LIMIT_PER_SECOND": 0,
    }
    return {**os.environ, **{f"ESPALIER_{name}": str(value) for name, value in given.items()}}


def _wait_until_up(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            httpx.get(f"{url}/healthz", timeout=5, trust_env=False)
        except httpx.TransportError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"the API does not start: {log.read_text()}") from None
            time.sleep(0.05)
        else:
            return
