"""The child's environment and end: no credentials in, no process left."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from pruning.events import PhaseChanged, dump_event
from tests.worker.processes import ROOT, wait_until
from worker.child import Invocation, child_environment, start

LOCAL = {"model": {"source": "path"}, "data": {"train": [{"source": {"kind": "path"}}]}}
HUB_DATA = {"model": {"source": "path"}, "data": {"train": [{"source": {"kind": "hub"}}]}}
NAMED_TASK = {**LOCAL, "evaluation": {"suites": [{"kind": "lm_eval", "task": "arc_easy"}]}}
OTHER_MODEL = {**LOCAL, "evaluation": {"compare_with": [{"source": "hub", "id": "org/name"}]}}
PARENT = {
    "PATH": "/bin",
    "HOME": "/root",
    "CUDA_VISIBLE_DEVICES": "1",
    "HF_HOME": "/cache",
    "HF_TOKEN": "hf_secret",
    "ESPALIER_DATABASE_URL": "postgresql://u:secret@h/d",
    "ESPALIER_BROKER_URL": "redis://:secret@h",
    "PGPASSWORD": "secret",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "https_proxy": "http://u:secret@proxy",
}
# Starts a child that sleeps, says its number, and waits for its own end.
PARENT_PROGRAM = """
import signal, sys
from pathlib import Path
from worker.child import Invocation, start
log = Path(sys.argv[1])
child = start(Invocation(command=(sys.executable, "-c", "import time; time.sleep(60)"),
    recipe_path=log, out_dir=log, resume_from=None, device="cpu", environment={}, log_path=log))
print(child.pid, flush=True)
signal.pause()
"""


def invocation_of(program: str, directory: Path) -> Invocation:
    """A child that runs this Python program and looks at no recipe."""
    return Invocation(
        command=(sys.executable, "-c", program),
        recipe_path=directory,
        out_dir=directory,
        resume_from=None,
        device="cpu",
        environment={"PATH": "/usr/bin:/bin"},
        log_path=directory / "log",
    )


def test_a_child_gets_no_credentials_and_no_network() -> None:
    environment = child_environment(PARENT, LOCAL)
    assert "secret" not in str(environment)
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert (environment["PATH"], environment["CUDA_VISIBLE_DEVICES"]) == ("/bin", "1")
    assert (environment["HF_HOME"], environment["MALLOC_MMAP_MAX_"]) == ("/cache", "0")


@pytest.mark.parametrize("recipe", [HUB_DATA, NAMED_TASK, OTHER_MODEL])
def test_a_child_that_downloads_gets_what_that_needs(recipe: dict[str, Any]) -> None:
    environment = child_environment(PARENT, recipe)
    assert "HF_HUB_OFFLINE" not in environment
    assert environment["HF_TOKEN"] == "hf_secret"
    assert environment["https_proxy"] == PARENT["https_proxy"]
    assert "postgresql" not in str(environment)


def test_a_child_dies_with_its_worker(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PARENT_PROGRAM, str(tmp_path / "log")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.send_signal(signal.SIGKILL)
    wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, 5)


def test_what_a_child_said_last_is_heard_after_its_death(tmp_path: Path) -> None:
    event = PhaseChanged(phase="training", increment=1)
    line = dump_event(event).encode() + b"\n"
    # On a busy machine the pipe is read late; here it is written late, by a process that outlives.
    program = (
        "import os, sys, time; fd = int(sys.argv[sys.argv.index('--events-fd') + 1])\n"
        "if os.fork() == 0:\n"
        f"    os.setsid(); time.sleep(1); os.write(fd, {line!r})"
    )
    heard = []
    with start(invocation_of(program, tmp_path)) as child:
        while not child.ended:
            heard.append(child.next_event(0.1))
    assert event in heard


def test_leaving_the_block_kills_the_whole_group(tmp_path: Path) -> None:
    program = "import subprocess, sys; subprocess.run(['sleep', '60'])"
    with start(invocation_of(program, tmp_path)) as child:
        process = psutil.Process(child.pid)
        wait_until(process.children)
        [grandchild] = process.children()
    wait_until(lambda: not grandchild.is_running(), 5)
    assert not process.is_running()
