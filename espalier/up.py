"""`espalier up`: the whole service on one machine, as children of this process.

Only processes and environment variables cross: nothing of the service is imported here, so the same
command starts the same programs that run alone on many hosts.
"""

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import httpx
import typer

from espalier.connection import (
    LocalServer,
    read_key,
    remove_local_server,
    write_key,
    write_local_server,
)
from espalier.supervisor import Service, Supervisor, die_with_parent

_READY_SECONDS = 120.0
_MAX_START_FAILURES = 4
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class UpError(Exception):
    """The service cannot start; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to run the service; `stop_seconds` is what the worker gets to reach a boundary."""

    host: str
    port: int
    data_dir: Path
    allowed_paths: tuple[Path, ...]
    stop_seconds: float
    as_json: bool = False


def serve(options: Options) -> None:
    """Run until a signal, then stop everything.

    Raises:
        UpError: another `up` holds the data directory, the port is taken, or a part does not start.
    """
    _lines_as_json.set(options.as_json)
    with _lock(options.data_dir), _signals() as caught:
        port = _choose_port(options.host, options.port)
        url = f"http://{_url_host(options.host)}:{port}"
        environment = _environment(options)
        _prepare(options.data_dir, environment)
        supervisor = Supervisor(
            services(options.host, port, stop_seconds=options.stop_seconds),
            environment=environment,
            directory=options.data_dir,
            log_dir=options.data_dir / "logs",
            say=_say,
        )
        try:
            supervisor.start()
            _wait_until_ready(supervisor, url, caught)
            if not caught:
                _welcome(options.data_dir, url, environment)
            while not caught:
                supervisor.step(0.2)
            _note("stopping: the worker goes on to a boundary; Ctrl-C again stops at once")
        finally:
            remove_local_server(options.data_dir)
            supervisor.stop(hurry=lambda: len(caught) > 1)
        _note("stopped")


def services(host: str, port: int, *, stop_seconds: float) -> tuple[Service, ...]:
    """The programs of the service, in the order in which they are stopped."""
    python = sys.executable
    return (
        Service(
            name="worker",
            command=(
                *(python, "-m", "celery", "-A", "worker.app", "worker"),
                *("--pool", "threads", "--concurrency", "1"),
                *("--without-gossip", "--without-mingle", "--loglevel", "INFO"),
            ),
            stop_seconds=stop_seconds,
        ),
        Service(name="sweeper", command=(python, "-m", "registry", "sweep"), stop_seconds=10),
        Service(
            name="api",
            command=(
                *(python, "-m", "uvicorn", "--factory", "api.main:create_app"),
                *("--host", host, "--port", str(port)),
                *("--timeout-graceful-shutdown", "10", "--no-access-log"),
            ),
            stop_seconds=20,
        ),
    )


# --- the data directory ----------------------------------------------------------------------


@contextmanager
def _lock(data_dir: Path) -> Iterator[None]:
    """Hold the data directory; the kernel lets go when this process ends, however it ends."""
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (data_dir / "up.lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            raise UpError(f"process {owner} already serves {data_dir}") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _environment(options: Options) -> dict[str, str]:
    environment = dict(os.environ)
    environment |= {"ESPALIER_DATA_DIR": str(options.data_dir), "PYTHONUNBUFFERED": "1"}
    # torch's threads otherwise burn their turn waiting for each other when something else runs too.
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if options.allowed_paths:
        environment["ESPALIER_ALLOWED_PATHS"] = json.dumps([str(p) for p in options.allowed_paths])
    return environment


def _run(environment: Mapping[str, str], directory: Path, *arguments: str) -> str:
    """Run one of our programs to its end and return what it printed."""
    done = subprocess.run(
        (sys.executable, *arguments),
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=die_with_parent(),
    )
    if done.returncode != 0:
        tail = "\n".join((done.stderr or done.stdout).strip().splitlines()[-5:])
        raise UpError(f"`python {' '.join(arguments)}` failed:\n{tail}")
    return done.stdout


# --- address ---------------------------------------------------------------------------------


def _choose_port(host: str, port: int) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UpError(
                f"cannot listen on {host}:{port}: {error.strerror}; try --port 0"
            ) from None
        chosen: int = probe.getsockname()[1]
    return chosen


def _url_host(host: str) -> str:
    if host in ("0.0.0.0", "::"):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def _wait_until_ready(supervisor: Supervisor, url: str, caught: list[int]) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    # One client: each new one reads all certificates, while the service needs the processors.
    with httpx.Client(base_url=url, timeout=5, trust_env=False) as client:
        while not caught and (missing := _what_is_missing(client)):
            supervisor.step(0.1)
            if supervisor.most_failures >= _MAX_START_FAILURES:
                message = "a part of the service does not start; its lines are above and in logs/"
                raise UpError(message)
            if time.monotonic() > deadline:
                raise UpError(f"not ready after {_READY_SECONDS:.0f} s: {missing}")


def _what_is_missing(client: httpx.Client) -> str | None:
    """What `/readyz` lacks, in words; None once every check is ok, a live worker included."""
    try:
        answer = client.get("/readyz").json()
    except (httpx.TransportError, ValueError) as error:
        return f"{client.base_url}/readyz: {error}"
    if answer.get("status") == "ok":
        return None
    checks = answer.get("checks", {})
    return ", ".join(
        f"{name} {check['status']} ({check.get('detail')})"
        for name, check in checks.items()
        if check["status"] != "ok"
    )


def _prepare(data_dir: Path, environment: Mapping[str, str]) -> None:
    """Bring the database to the newest schema; the first time, with a key in the same breath."""
    if read_key(data_dir) is None:
        words = ("-m", "registry", "migrate", "--create-key")
        _keep_key(data_dir, _run(environment, data_dir, *words))
    else:
        _run(environment, data_dir, "-m", "registry", "migrate")


# --- the key ---------------------------------------------------------------------------------


def _welcome(data_dir: Path, url: str, environment: Mapping[str, str]) -> None:
    secret = read_key(data_dir)
    if secret is None or not _key_works(url, secret):
        _keep_key(data_dir, _run(environment, data_dir, "-m", "registry", "create-key"))
    write_local_server(data_dir, LocalServer(url=url, pid=os.getpid()))
    _note(f"ready: {url}")


def _keep_key(data_dir: Path, printed: str) -> None:
    secret = printed.strip().split()[-1]
    write_key(data_dir, secret)
    _note(f"first admin key, kept in {data_dir}/admin.key: {secret}")


def _key_works(url: str, secret: str) -> bool:
    headers = {"Authorization": f"Bearer {secret}"}
    answer = httpx.get(f"{url}/v1/jobs?limit=1", headers=headers, timeout=10, trust_env=False)
    return answer.status_code != httpx.codes.UNAUTHORIZED


# --- signals and console ---------------------------------------------------------------------


@contextmanager
def _signals() -> Iterator[list[int]]:
    """The list of stop signals caught so far."""
    caught: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        caught.append(number)

    before = {number: signal.signal(number, note) for number in _STOP_SIGNALS}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_lines_as_json = ContextVar("lines_as_json", default=False)


def _say(name: str, line: str) -> None:
    as_json = _lines_as_json.get()
    typer.echo(json.dumps({"from": name, "line": line}) if as_json else f"{name:>8} | {line}")


def _note(line: str) -> None:
    _say("espalier", line)
