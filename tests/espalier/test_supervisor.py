"""Children that end, hang, talk and leave children of their own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from espalier.supervisor import Service, Supervisor


def never() -> bool:
    return False


class Crew:
    """A supervisor of shell scripts, and what they said."""

    def __init__(self, directory: Path) -> None:
        self.said: list[tuple[str, str]] = []
        self._directory = directory

    def start(self, *scripts: str, stop_seconds: float = 5) -> Supervisor:
        services = [
            Service(name=f"s{n}", command=("sh", "-c", script), stop_seconds=stop_seconds)
            for n, script in enumerate(scripts)
        ]
        supervisor = Supervisor(
            services,
            environment=os.environ,
            directory=self._directory,
            log_dir=self._directory / "logs",
            say=lambda name, line: self.said.append((name, line)),
        )
        supervisor.start()
        return supervisor

    def step_until(self, supervisor: Supervisor, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < deadline, self.said
            supervisor.step(0.05)


@pytest.fixture
def crew(tmp_path: Path) -> Crew:
    return Crew(tmp_path)


def test_lines_are_passed_on_and_kept(crew: Crew, tmp_path: Path) -> None:
    written = tmp_path / "written"
    supervisor = crew.start(f"echo one; echo two >&2; printf three; touch {written}; exec sleep 60")
    crew.step_until(supervisor, lambda: len(crew.said) >= 2 and written.exists())
    supervisor.stop(never)
    assert crew.said == [("s0", "one"), ("s0", "two"), ("s0", "three")]
    assert (tmp_path / "logs" / "s0.log").read_text() == "one\ntwo\nthree\n"


def test_a_service_that_ends_is_started_again_later_each_time(crew: Crew) -> None:
    supervisor = crew.start("echo started; exit 3")
    crew.step_until(supervisor, lambda: crew.said.count(("s0", "started")) == 2)
    crew.step_until(supervisor, lambda: supervisor.most_failures == 2)
    supervisor.stop(never)
    ends = [line for _, line in crew.said if line.startswith("ended")]
    assert ends == ["ended with exit code 3; again in 1 s", "ended with exit code 3; again in 2 s"]


def test_services_stop_in_the_order_they_are_named(crew: Crew) -> None:
    script = "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.05; done"
    supervisor = crew.start(script, script)
    crew.step_until(supervisor, lambda: len(crew.said) == 2)
    supervisor.stop(never)
    assert crew.said[2:] == [("s0", "bye"), ("s1", "bye")]


def test_a_service_that_does_not_stop_is_killed_with_its_children(
    crew: Crew, tmp_path: Path
) -> None:
    supervisor = crew.start("trap '' TERM; sleep 60 & echo $!; wait; wait", stop_seconds=0.2)
    crew.step_until(supervisor, lambda: bool(crew.said))
    child = psutil.Process(int(crew.said[0][1]))
    supervisor.stop(never)
    assert crew.said[-1] == ("s0", "did not stop in time; killed")
    psutil.wait_procs([child], timeout=5)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_a_hurry_cuts_the_grace_short(crew: Crew) -> None:
    supervisor = crew.start("trap '' TERM; echo up; while :; do sleep 0.05; done", stop_seconds=60)
    crew.step_until(supervisor, lambda: bool(crew.said))
    started_at = time.monotonic()
    supervisor.stop(lambda: True)
    assert time.monotonic() - started_at < 5


def test_children_die_with_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    program = (
        "import os, sys, pathlib\n"
        "from espalier.supervisor import Service, Supervisor\n"
        "command = ('sh', '-c', 'echo $$; exec sleep 60')\n"
        "script = Service(name='s', command=command, stop_seconds=1)\n"
        "here = pathlib.Path(sys.argv[1])\n"
        "supervisor = Supervisor([script], environment=os.environ, directory=here,\n"
        "    log_dir=here, say=lambda name, line: print(line, flush=True))\n"
        "supervisor.start()\n"
        "while True: supervisor.step(0.1)\n"
    )
    command = (sys.executable, "-c", program, str(tmp_path))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.send_signal(signal.SIGKILL)
    psutil.wait_procs([child], timeout=5)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
