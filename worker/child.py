"""The child process that runs a recipe: started, listened to, stopped. It knows nothing of the
service.

It dies with the thread that started it (`PR_SET_PDEATHSIG`), leads its own process group, sees
neither database nor broker, and reports over a pipe; what it prints goes to a log file.
"""

import ctypes
import logging
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from pydantic import ValidationError

from pruning.events import Event, parse_event

_PR_SET_PDEATHSIG = 1
_LOG_TAIL_BYTES = 8192
_MALFORMED_SHOWN = 200
_LAST_WORDS_SECONDS = 5.0

# What a program needs to find its interpreter, its devices and its caches, and nothing that opens
# doors.
_PASSED = frozenset(
    {"PATH", "HOME", "USER", "LANG", "LANGUAGE", "TZ", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH"}
)
_PASSED_PREFIXES = (
    *("LC_", "PYTHON", "CUDA_", "NVIDIA_", "NCCL_", "ROCR_", "HIP_", "OMP_", "MKL_", "OPENBLAS_"),
    *("TORCH", "PYTORCH_", "HF_", "XDG_", "SSL_", "REQUESTS_CA_"),
)
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")
_SECRET = ("TOKEN", "SECRET", "PASSWORD", "KEY")

# glibc returns and maps large tensors again and again otherwise, and every fresh page faults: keep
# them in the heap.
_ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "34359738368",
    "MALLOC_TOP_PAD_": "67108864",
}
_OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}

logger = logging.getLogger(__name__)
_libc = ctypes.CDLL(None, use_errno=True)


class _End:
    """Marks the end of the child's events."""


@dataclass(frozen=True, kw_only=True)
class Invocation:
    """How to start the child."""

    command: tuple[str, ...]
    recipe_path: Path
    out_dir: Path
    resume_from: Path | None
    device: str
    environment: Mapping[str, str]
    log_path: Path

    def run_arguments(self, events_fd: int) -> list[str]:
        """What `run` is told."""
        resume = ["--resume", str(self.resume_from)] if self.resume_from else []
        return [
            str(self.recipe_path),
            *("--out", str(self.out_dir)),
            *resume,
            *("--events-fd", str(events_fd)),
            *("--device", self.device),
        ]


def child_environment(parent: Mapping[str, str], recipe: Mapping[str, Any]) -> dict[str, str]:
    """The environment of a child: only what may pass, offline unless the recipe names a hub."""
    if not _uses_hub(recipe):
        return offline_environment(parent)
    online = {name: parent[name] for name in (*_PROXIES, "HF_TOKEN") if name in parent}
    return _passed_on(parent) | online


def offline_environment(parent: Mapping[str, str]) -> dict[str, str]:
    """The environment of a child that has all it needs on this host."""
    return _passed_on(parent) | _OFFLINE


def _passed_on(parent: Mapping[str, str]) -> dict[str, str]:
    passed = {
        name: value
        for name, value in parent.items()
        if (name in _PASSED or name.startswith(_PASSED_PREFIXES))
        and not any(word in name.upper() for word in _SECRET)
    }
    return {**passed, **_ALLOCATOR, "PYTHONUNBUFFERED": "1"}


def _uses_hub(recipe: Mapping[str, Any]) -> bool:
    data = recipe["data"]
    sources = [domain["source"] for domain in data["train"]]
    if data.get("evaluation"):
        sources.append(data["evaluation"])
    evaluation = recipe.get("evaluation", {})
    suites = evaluation.get("suites", ())
    sources += [suite["source"] for suite in suites if "source" in suite]
    models = [recipe["model"], *evaluation.get("compare_with", ())]
    return (
        any(model["source"] == "hub" for model in models)
        or any(source["kind"] == "hub" for source in sources)
        or any(suite["kind"] == "lm_eval" for suite in suites)
    )


def die_with(parent_pid: int) -> Callable[[], None]:
    """What a child runs first (`preexec_fn`): it dies with the thread that started it."""

    def die_with_parent() -> None:
        # Runs between fork and exec: system calls only, since other threads may hold locks.
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent_pid:
            os._exit(1)  # The parent died before the call above could tell.

    return die_with_parent


class Child:
    """A running child. Leaving the `with` block kills what is left of its process group."""

    def __init__(self, process: subprocess.Popen[bytes], events_fd: int, log_path: Path) -> None:
        self._process = process
        self._log_path = log_path
        self._events: queue.SimpleQueue[Event | _End] = queue.SimpleQueue()
        self._ended = False
        self._died_at: float | None = None
        self._reader = threading.Thread(
            target=self._read, args=(events_fd,), name=f"events-{process.pid}", daemon=True
        )
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()
        self._process.wait()

    @property
    def pid(self) -> int:
        """The child's process and process group."""
        return self._process.pid

    def _read(self, events_fd: int) -> None:
        # Unbounded on purpose: a child must not stand still because the database does.
        with os.fdopen(events_fd, "rb") as lines:
            for line in lines:
                try:
                    self._events.put(parse_event(line))
                except ValidationError:
                    logger.warning("not an event of this version: %r", line[:_MALFORMED_SHOWN])
        self._events.put(_End())

    def next_event(self, timeout_seconds: float) -> Event | None:
        """The next event, or None if there was none in time."""
        try:
            event = self._events.get(timeout=timeout_seconds)
        except queue.Empty:
            self._look_for_death()
            return None
        if isinstance(event, _End):
            self._ended = True
            return None
        return event

    def _look_for_death(self) -> None:
        """End the wait for a pipe that a grandchild keeps open, but not before all was read.

        On a busy machine the last events are still on their way when the child is gone already.
        """
        if self._process.poll() is None:
            return
        self.kill()
        now = time.monotonic()
        self._died_at = self._died_at or now
        self._ended = self._ended or now - self._died_at > _LAST_WORDS_SECONDS

    @property
    def ended(self) -> bool:
        """Whether all its events were taken and no more will come."""
        return self._ended

    def wait(self, timeout_seconds: float) -> int | None:
        """The exit code, negative for a signal; None if it has not come yet."""
        try:
            return self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            return None

    def terminate(self) -> None:
        """Ask it to stop at the next boundary."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it and everything it started, now."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return

    def log_tail(self) -> str:
        """The end of what it printed."""
        with self._log_path.open("rb") as log:
            log.seek(max(0, self._log_path.stat().st_size - _LOG_TAIL_BYTES))
            return log.read().decode("utf-8", "replace").replace("\0", "")


def start(invocation: Invocation) -> Child:
    """Start the child from the thread that will stay with it until its end."""
    invocation.log_path.parent.mkdir(parents=True, exist_ok=True)
    with invocation.log_path.open("ab") as log:
        process, events = spawn(
            lambda events_fd: [*invocation.command, "run", *invocation.run_arguments(events_fd)],
            invocation.environment,
            stdin=subprocess.DEVNULL,
            output=log,
        )
    return Child(process, events.read_fd, invocation.log_path)


@dataclass(frozen=True)
class EventPipe:
    """A child's events: where they are read here, and the number of the other end over there."""

    read_fd: int
    child_fd: int


def spawn(
    command: Callable[[int], Sequence[str]],
    environment: Mapping[str, str],
    *,
    stdin: int,
    output: IO[bytes] | None,
) -> tuple[subprocess.Popen[bytes], EventPipe]:
    """A process in a group of its own that dies with this thread; `command` is told its pipe.

    Without `output` it prints where this process does.
    """
    read_fd, write_fd = os.pipe()
    try:
        process = subprocess.Popen(
            command(write_fd),
            stdin=stdin,
            stdout=output,
            stderr=output,
            env=dict(environment),
            pass_fds=(write_fd,),
            start_new_session=True,
            preexec_fn=die_with(os.getpid()),
        )
    except BaseException:
        os.close(read_fd)
        raise
    finally:
        os.close(write_fd)
    return process, EventPipe(read_fd, write_fd)
