"""Workers and sweepers as the processes that they are in production."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from registry.settings import Settings
from tests.servers import die_with_parent

ROOT = Path(__file__).parents[2]
WORKER = (
    *("-m", "celery", "-A", "worker.app", "worker", "--pool", "threads", "--concurrency", "1"),
    *("--without-gossip", "--without-mingle", "--loglevel", "INFO"),
)
SWEEPER = ("-m", "registry", "sweep")


class Processes:
    """Processes of the service, all on the same settings, none of which survives the block.

    `enter` stands before each command, to run it in a namespace.
    """

    def __init__(self, settings: Settings, log_dir: Path, *, enter: tuple[str, ...] = ()) -> None:
        self._enter = enter
        self._environment = environment_of(settings)
        self._log_dir = log_dir
        self._running: list[subprocess.Popen[bytes]] = []

    def start(self, arguments: tuple[str, ...]) -> subprocess.Popen[bytes]:
        with (self._log_dir / f"{len(self._running)}.log").open("wb") as log:
            process = subprocess.Popen(
                [*self._enter, sys.executable, *arguments],
                cwd=ROOT,
                env=self._environment,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent(),
            )
        self._running.append(process)
        return process

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._running:
            process.kill()
            process.wait()

    def logs(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self._log_dir.glob("*.log")))


def environment_of(settings: Settings) -> dict[str, str]:
    """The environment in which `Settings()` is `settings`."""
    given = settings.model_dump(mode="json", exclude_defaults=True)
    variables = {
        f"ESPALIER_{name.upper()}": value if isinstance(value, str) else _json(value)
        for name, value in given.items()
    }
    return {**os.environ, **variables, "PYTHONPATH": str(ROOT)}


def _json(value: object) -> str:
    return json.dumps(value)


def children_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """What a worker has started."""
    return psutil.Process(process.pid).children()


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a process as the kernel would."""
    process.send_signal(signal.SIGKILL)
    process.wait()


def wait_until(condition: Callable[[], object], seconds: float = 300.0) -> None:
    """Wait for something that has to come."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.05)
