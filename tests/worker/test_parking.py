"""The child that waits: used once, never for a run that may reach a hub, gone with its worker."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from registry.status import JobStatus
from tests.worker.conftest import STAND_IN, Submit, run
from tests.worker.processes import ROOT, wait_until
from tests.worker.test_runner import Look
from worker.child import Invocation, offline_environment
from worker.parking import Parking
from worker.workplace import Workplace

COMMAND = (sys.executable, "-c", "import sys, time; print(sys.argv); time.sleep(60)")
# Parks a child, says its number, and waits for its own end.
PARENT_PROGRAM = """
import os, signal, sys
from worker.parking import Parking
parking = Parking((sys.executable, "-c", "import time; time.sleep(60)"), enabled=True)
parking.park()
print(parking._parked.process.pid, flush=True)
signal.pause()
"""


@pytest.fixture
def parking() -> Iterator[Parking]:
    parking = Parking(COMMAND, enabled=True)
    yield parking
    parking.close()


def invocation_in(directory: Path) -> Invocation:
    return Invocation(
        command=COMMAND,
        recipe_path=directory / "recipe.json",
        out_dir=directory,
        resume_from=None,
        device="cpu",
        environment=offline_environment(os.environ),
        log_path=directory / "logs" / "log",
    )


def waiting() -> list[psutil.Process]:
    return [p for p in psutil.Process().children() if p.cmdline()[-1:] == ["wait"]]


def test_the_waiting_child_runs_the_next_job_and_none_after_it(
    workplace: Workplace, submit: Submit, look: Look, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    workplace.parking.park()
    [child] = waiting()
    first, second = submit(increments=1), submit(increments=1)
    for job_id in (first, second):
        run(workplace, job_id)
        assert look(job_id).status is JobStatus.SUCCEEDED
    by_job = [f"job {job_id}: child {child.pid}" in caplog.text for job_id in (first, second)]
    assert by_job == [True, False]
    assert waiting() == []


def test_what_the_waiting_child_prints_goes_to_the_log_of_its_attempt(
    workplace: Workplace, submit: Submit, look: Look
) -> None:
    workplace.parking.park()
    job_id = submit(max_attempts=1, misbehave={"increment": 1, "how": "exit", "code": 78})
    run(workplace, job_id)
    error = look(job_id).error
    assert error is not None
    assert error["log_tail"] == "about to leave\n"


def test_a_waiting_child_that_has_died_is_replaced(parking: Parking, tmp_path: Path) -> None:
    parking.park()
    [child] = waiting()
    child.kill()
    wait_until(lambda: child.status() == psutil.STATUS_ZOMBIE, 5)
    with parking.start(invocation_in(tmp_path)) as started:
        assert started.pid != child.pid
        assert psutil.Process(started.pid).cmdline()[3] == "run"


def test_a_run_that_may_reach_a_hub_gets_a_child_of_its_own(
    parking: Parking, tmp_path: Path
) -> None:
    parking.park()
    [child] = waiting()
    online = replace(invocation_in(tmp_path), environment={"HF_TOKEN": "hf_secret"})
    with parking.start(online) as started:
        assert started.pid != child.pid
    assert waiting() == [child]


def test_one_child_waits_however_often_it_is_asked_for(parking: Parking) -> None:
    for _ in range(3):
        parking.park()
    assert len(waiting()) == 1
    parking.close()
    parking.park()
    assert waiting() == []


def test_no_child_waits_where_that_is_switched_off() -> None:
    Parking(STAND_IN, enabled=False).park()
    assert waiting() == []


def test_a_waiting_child_dies_with_its_worker() -> None:
    command = [sys.executable, "-c", PARENT_PROGRAM]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.send_signal(signal.SIGKILL)
    wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, 5)


def test_a_child_that_nobody_can_tell_anything_ends() -> None:
    subprocess.run([*STAND_IN, "wait"], cwd=ROOT, stdin=subprocess.DEVNULL, check=True)
