"""The service as real processes, and a job small enough to finish in seconds."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from espalier.client import Client
from espalier.connection import read_key, read_local_server
from espalier.resources import Job
from tests.pruning.tiny import CORPUS, make_tiny_model, make_tiny_tokenizer
from tests.servers import die_with_parent

NUM_INCREMENTS = 4
# Short enough to see a lost lease expire, long enough to renew it on a busy machine.
IMPATIENT = {
    "ESPALIER_LEASE_SECONDS": "4",
    "ESPALIER_BACKOFF_SECONDS": "0.2",
    "ESPALIER_REHINT_SECONDS": "1",
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
}


def write_model_and_text(
    directory: Path, *, intermediate_size: int = 64, num_documents: int = 120
) -> tuple[Path, Path]:
    """A random Llama with its tokenizer, and two domains of text."""
    model, text = directory / "model", directory / "text"
    directory.mkdir(exist_ok=True)
    make_tiny_model(intermediate_size=intermediate_size).save_pretrained(model)
    make_tiny_tokenizer().save_pretrained(model)
    text.mkdir()
    for domain, words in (("docs", CORPUS[0]), ("code", CORPUS[1])):
        lines = (json.dumps({"text": f"{words} {n} " * 4}) for n in range(num_documents))
        (text / f"{domain}.jsonl").write_text("\n".join(lines))
    return model, text


def tiny_request(model: Path, text: Path, *, num_tokens: int = 4_000) -> dict[str, Any]:
    """A request whose every number is tiny; more tokens make it last longer."""
    return {
        "model": str(model),
        "target": "30%",
        "data": str(text),
        "importance": {"calibration": {"num_samples": 4, "sequence_length": 32, "batch_size": 4}},
        "allocation": {"constraints": {"width_multiple": 1, "min_intermediate_size": 8}},
        "schedule": {"num_increments": NUM_INCREMENTS, "num_tokens": num_tokens},
        "recovery": {"sequence_length": 32, "batch_sequences": 4, "precision": "float32"},
        "evaluation": {"context_length": 32, "speed": False},
        "output": {"dtype": "float32"},
    }


class Up:
    """`espalier up` on a data directory; if it is not ready in time, nothing of it stays behind."""

    def __init__(self, data_dir: Path, allowed: Path, *, ready_seconds: float = 60) -> None:
        self.data_dir = data_dir
        command = [sys.executable, "-m", "espalier", "up", "--port", "0"]
        command += ["--data-dir", str(data_dir), "--allow-path", str(allowed)]
        self.output = data_dir.with_suffix(".log")
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                command,
                env={**os.environ, **IMPATIENT},
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=die_with_parent(),
            )
        try:
            wait_until(self._ready, seconds=ready_seconds, what="up to be ready")
        except BaseException as error:
            error.add_note(self.output.read_text())
            self._kill_if_running()
            raise
        self.client = Client(self._url, read_key(data_dir))

    def _ready(self) -> bool:
        assert self.process.poll() is None, self.output.read_text()
        server = read_local_server(self.data_dir)
        if server is None or server.pid != self.process.pid:
            return False
        self._url = server.url
        return True

    def tree(self) -> list[psutil.Process]:
        """This `up` and everything below it."""
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    def find(self, *words: str) -> psutil.Process:
        """The one process below whose command line has these words."""
        found = [p for p in self.tree()[1:] if set(words) <= set(_command_line(p))]
        assert len(found) == 1, f"{words}: {[_command_line(p) for p in self.tree()]}"
        return found[0]

    def interrupt(self, *, seconds: float = 60) -> int:
        """What Ctrl-C does; the exit status."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(seconds)

    def kill_everything(self) -> None:
        """kill -9, parent first, so that nobody has a chance to tidy up."""
        for process in self.tree():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()

    def close(self) -> None:
        """End it whatever state a failed test left it in."""
        self.client.close()
        self._kill_if_running()

    def _kill_if_running(self) -> None:
        if self.process.poll() is None:
            self.kill_everything()


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def wait_until(
    condition: Callable[[], bool], *, seconds: float, what: str, look_seconds: float = 0.05
) -> None:
    """Look again and again."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(look_seconds)


def wait_for_increment(client: Client, job_id: str, increment: int) -> None:
    """Until an increment is committed."""

    def committed() -> bool:
        job = client.get(job_id)
        assert not job.ended, f"too late to interfere: {job}"
        return job.progress.increments_done >= increment

    wait_until(committed, seconds=90, what=f"increment {increment}")


def wait_for_success(client: Client, job_id: str, *, seconds: float = 120) -> Job:
    """Until the job has succeeded; any other end fails the test."""
    wait_until(lambda: client.get(job_id).ended, seconds=seconds, what="the job to end")
    job = client.get(job_id)
    assert job.status == "succeeded", job
    return job


def committed_increments(client: Client, job_id: str) -> list[int]:
    """Increments in the order of their commits, from the job's event log."""
    with_sequence = list(client.stream(job_id))[-1][1]
    events = with_sequence or client.events(job_id).data
    assert [e.seq for e in events] == list(range(1, len(events) + 1))
    return [e.data["increment"] for e in events if e.type == "checkpoint.created"]


def assert_gone(processes: list[psutil.Process], *, seconds: float = 10) -> None:
    """None of them is left (a zombie whose parent is slow to reap counts as gone)."""

    def all_gone() -> bool:
        return not [p for p in processes if _alive(p)]

    wait_until(all_gone, seconds=seconds, what=f"{[p for p in processes if _alive(p)]} to end")


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
