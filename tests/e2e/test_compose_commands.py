"""The commands of docker-compose.yml by hand, on real Postgres and a Redis-protocol server.

Where this machine lets us, without root and on a read-only file system, as in a container.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy.engine import make_url

from espalier.client import Client
from espalier.errors import EspalierError
from tests.conftest import execute_on_server
from tests.e2e import container
from tests.e2e.stack import (
    IMPATIENT,
    NUM_INCREMENTS,
    committed_increments,
    tiny_request,
    wait_for_success,
    wait_until,
    write_model_and_text,
)
from tests.servers import PREFIX, free_port

ROOT = Path(__file__).parents[2]
SERVICES: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]


class Deployment:
    """The services as processes of this machine, with what compose would give them."""

    def __init__(self, directory: Path, database_url: str, broker_url: str) -> None:
        self.port = free_port()
        self._directory = directory
        container.prepare(directory)
        self._enter = container.enter(directory)
        self._environment: Mapping[str, str] = {
            **os.environ,
            **IMPATIENT,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "HOSTNAME": socket.gethostname(),
            "HOME": "/nonexistent",
            "HF_HOME": str(directory / "data" / "hub"),
            "TMPDIR": str(directory / "tmp"),
            "ESPALIER_DATA_DIR": str(directory / "data"),
            "ESPALIER_DATABASE_URL": database_url,
            "ESPALIER_BROKER_URL": broker_url,
            "ESPALIER_ARTIFACTS_URL": f"file://{directory}/data/artifacts",
            "ESPALIER_ALLOWED_PATHS": f'["{directory}"]',
        }

    def _words(self, command: list[str]) -> list[str]:
        if command[0] == "CMD-SHELL":
            return ["sh", "-c", command[1].replace("$$", "$")]
        words = command[1:] if command[0] == "CMD" else command
        words = [re.sub(r"(?<!\d)8000(?!\d)", str(self.port), word) for word in words]
        return [word.replace("0.0.0.0", "127.0.0.1") for word in words]

    def run(self, command: list[str]) -> str:
        """Run a command to its end, which must be a good one."""
        done = subprocess.run(
            [*self._enter, *self._words(command)],
            env=self._environment,
            cwd=self._directory,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    @contextmanager
    def running(self, name: str) -> Iterator[subprocess.Popen[bytes]]:
        """A service of the compose file, stopped as compose stops it."""
        with (self._directory / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [*self._enter, *self._words(SERVICES[name]["command"])],
                env=self._environment,
                cwd=self._directory,
                stdout=log,
                stderr=log,
            )
        try:
            yield process
        finally:
            process.terminate()
            process.wait(30)


@pytest.fixture
def visible() -> Iterator[Path]:
    """A directory that others than its owner may enter, which those of pytest are not."""
    with tempfile.TemporaryDirectory(prefix=PREFIX) as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def deployment(postgres_url: str, redis_url: str, visible: Path) -> Iterator[Deployment]:
    name = f"espalier_{uuid.uuid4().hex}"
    execute_on_server(postgres_url, f"CREATE DATABASE {name}")
    url = make_url(postgres_url).set(database=name).render_as_string(hide_password=False)
    yield Deployment(visible, url, redis_url)
    execute_on_server(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")


def test_the_commands_of_compose_finish_a_job_without_root_on_a_read_only_machine(
    deployment: Deployment, visible: Path
) -> None:
    deployment.run(SERVICES["migrate"]["command"])
    key = deployment.run(["python", "-m", "registry", "create-key"]).strip()
    request = tiny_request(*write_model_and_text(visible / "inputs"))
    with ExitStack() as stack:
        api, sweeper, worker = (
            stack.enter_context(deployment.running(name))
            for name in ("api", "sweeper", "worker-cpu")
        )
        client = stack.enter_context(Client(f"http://127.0.0.1:{deployment.port}", key))
        wait_until(lambda: _answers(client), seconds=60, what="the API")
        job = wait_for_success(client, client.submit(request).id)
        assert committed_increments(client, job.id) == list(range(1, NUM_INCREMENTS + 1))
        for name in ("api", "sweeper", "worker-cpu"):
            deployment.run(SERVICES[name]["healthcheck"]["test"])
    assert [sweeper.returncode, worker.returncode] == [0, 0]
    assert api.returncode == -signal.SIGTERM  # uvicorn tidies up, then ends as it was asked to


def _answers(client: Client) -> bool:
    try:
        client.list_jobs()
    except EspalierError:
        return False
    return True
