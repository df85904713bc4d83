"""Workers on hosts of their own: network namespaces, each with one link to the database."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from registry.db import SessionFactory, transaction
from registry.settings import Settings
from registry.status import JobStatus
from registry.storage import store_for
from registry.tables import Job, JobAttempt
from tests.worker.blackhole import proxied
from tests.worker.conftest import Submit
from tests.worker.history import check_history
from tests.worker.processes import SWEEPER, WORKER, Processes, kill, wait_until

NUM_HOSTS = 3


class Host:
    """A network namespace whose only way out is a link to this one, and a worker in it."""

    def __init__(self, number: int) -> None:
        self.address = f"10.213.{number}.1"
        # It lasts as long as this process, and its link as long as the namespace.
        self._holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "echo; exec sleep 600"], stdout=subprocess.PIPE
        )
        assert self._holder.stdout is not None
        self._holder.stdout.readline()
        self._link = f"esp{self._holder.pid}"
        there = f"{self._link}b"
        self._run("ip", "link", "add", self._link, "type", "veth", "peer", "name", there)
        self._run("ip", "link", "set", there, "netns", str(self._holder.pid))
        self._run("ip", "address", "add", f"{self.address}/30", "dev", self._link)
        self._run(*self.enter, "ip", "address", "add", f"10.213.{number}.2/30", "dev", there)
        self._run(*self.enter, "ip", "link", "set", there, "up")
        self.join()

    @property
    def enter(self) -> tuple[str, ...]:
        """What to put before a command to run it on this host."""
        return ("nsenter", "--target", str(self._holder.pid), "--net")

    def cut(self) -> None:
        """Pull the plug: nothing arrives, and nobody is told."""
        self._run("ip", "link", "set", self._link, "down")

    def join(self) -> None:
        self._run("ip", "link", "set", self._link, "up")

    def close(self) -> None:
        self._run("ip", "link", "delete", self._link)
        self._holder.kill()
        with self._holder:
            pass

    @staticmethod
    def _run(*words: str) -> None:
        subprocess.run(words, check=True, capture_output=True)


def _may_make_hosts() -> bool:
    if not all(shutil.which(name) for name in ("ip", "unshare", "nsenter")):
        return False
    probe = "ip link add espa type veth peer name espb"
    done = subprocess.run(["unshare", "--net", "sh", "-c", probe], check=False, capture_output=True)
    return done.returncode == 0


@pytest.fixture
def hosts() -> Iterator[list[Host]]:
    if not _may_make_hosts():
        pytest.skip("this machine does not let us make networks")
    with ExitStack() as stack:
        made = []
        for number in range(NUM_HOSTS):
            made.append(Host(number))
            stack.callback(made[-1].close)
        yield made


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_a_host_whose_link_is_cut_loses_its_job_and_works_again_when_it_is_back(
    hosts: list[Host],
    settings: Settings,
    submit: Submit,
    look: Callable[[str], Job],
    factory: SessionFactory,
    tmp_path: Path,
) -> None:
    short = settings.model_copy(
        update={"lease_seconds": 3.0, "rehint_seconds": 0.5, "park_child": False}
    )
    with ExitStack() as stack:
        stack.enter_context(_processes(short, tmp_path / "here")).start(SWEEPER)
        workers = {}
        for number, host in enumerate(hosts):
            url, _ = stack.enter_context(proxied(settings.database_url, host.address))
            there = short.model_copy(update={"database_url": url, "worker_name": str(number)})
            processes = _processes(there, tmp_path / str(number), enter=host.enter)
            workers[str(number)] = stack.enter_context(processes).start(WORKER)

        job_id = submit(increments=8, step_seconds=0.2)
        wait_until(lambda: look(job_id).increments_done >= 1)
        cut_off = look(job_id).lease_owner
        assert cut_off is not None
        hosts[int(cut_off)].cut()
        wait_until(lambda: look(job_id).lease_owner not in (cut_off, None))
        hosts[int(cut_off)].join()
        wait_until(lambda: look(job_id).finished_at)
        assert look(job_id).status is JobStatus.SUCCEEDED
        check_history(factory, store_for(settings.artifacts_url), job_id)

        for name, worker in workers.items():
            if name != cut_off:
                kill(worker)
        another = submit(increments=1)
        wait_until(lambda: look(another).finished_at)
        with transaction(factory) as session:
            attempts = session.query(JobAttempt).order_by(JobAttempt.started_at).all()
        assert [attempt.end_cause for attempt in attempts] == [
            "lease_expired",
            "finished",
            "finished",
        ]
        assert [attempts[0].worker_id, attempts[2].worker_id] == [cut_off, cut_off]


def _processes(settings: Settings, log_dir: Path, *, enter: tuple[str, ...] = ()) -> Processes:
    log_dir.mkdir()
    return Processes(settings, log_dir, enter=enter)
