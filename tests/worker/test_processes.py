"""Real Celery workers and sweepers, killed for real: SQLite with files, Postgres with Valkey."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from registry import outbox
from registry.db import SessionFactory, transaction
from registry.queue import celery_app, publisher
from registry.settings import Settings
from registry.status import JobStatus
from registry.storage import store_for
from registry.tables import Job, Worker
from tests.servers import free_port, redis_server
from tests.worker.conftest import Submit
from tests.worker.history import check_history
from tests.worker.processes import SWEEPER, WORKER, Processes, children_of, kill, wait_until

Look = Callable[[str], Job]


@pytest.fixture
def settings(settings: Settings, request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Production in small: Postgres goes with a Redis-protocol broker, SQLite with files."""
    changes: dict[str, object] = {"lease_seconds": 3.0, "rehint_seconds": 1.0}
    if settings.database_url.startswith("postgresql"):
        url: str = request.getfixturevalue("redis_url")
        redis.Redis.from_url(url).flushdb()
        changes["broker_url"] = url
    return settings.model_copy(update=changes)


@pytest.fixture
def processes(settings: Settings, tmp_path: Path) -> Iterator[Processes]:
    log_dir = tmp_path / "logs"
    log_dir.mkdir()
    with Processes(settings, log_dir) as running:
        yield running


@pytest.fixture
def ended(look: Look, factory: SessionFactory, settings: Settings) -> Callable[[str], None]:
    def wait_for_success(job_id: str) -> None:
        wait_until(lambda: look(job_id).finished_at)
        job = look(job_id)
        assert job.status is JobStatus.SUCCEEDED, (job.status_reason, job.error)
        check_history(factory, store_for(settings.artifacts_url), job_id)

    return wait_for_success


def test_a_hint_wakes_a_worker_and_sigterm_gives_the_job_back(
    processes: Processes,
    settings: Settings,
    submit: Submit,
    look: Look,
    factory: SessionFactory,
    ended: Callable[[str], None],
) -> None:
    job_id = submit(increments=4, step_seconds=0.1)
    with transaction(factory) as session:
        assert outbox.relay(session, publisher(celery_app(settings))) == 1
    worker = processes.start(WORKER)
    wait_until(lambda: look(job_id).increments_done >= 1)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(30) == 0
    job = look(job_id)
    assert (job.status, job.failures) == (JobStatus.QUEUED, 0)
    with transaction(factory) as session:
        assert [w.status for w in session.query(Worker)] == ["stopped"]
    processes.start(WORKER)
    processes.start(SWEEPER)
    ended(job_id)


def test_a_job_survives_the_death_of_its_child_its_worker_and_everything(
    processes: Processes, submit: Submit, look: Look, ended: Callable[[str], None]
) -> None:
    job_id = submit(increments=4, step_seconds=0.3)
    sweeper, worker = processes.start(SWEEPER), processes.start(WORKER)

    wait_until(lambda: look(job_id).increments_done >= 1)
    [child] = children_of(worker)
    child.kill()
    wait_until(lambda: look(job_id).attempt == 2)

    wait_until(lambda: look(job_id).increments_done >= 2)
    [child] = children_of(worker)
    kill(worker)
    wait_until(lambda: not child.is_running(), seconds=5)
    worker = processes.start(WORKER)
    wait_until(lambda: look(job_id).attempt == 3)

    wait_until(lambda: look(job_id).increments_done >= 3)
    kill(sweeper)
    kill(worker)
    assert look(job_id).status is JobStatus.RUNNING
    processes.start(SWEEPER)
    processes.start(WORKER)
    ended(job_id)
    assert look(job_id).attempt == 4


def test_a_broker_that_forgets_everything_costs_time_only(
    settings: Settings, tmp_path: Path, submit: Submit, ended: Callable[[str], None]
) -> None:
    port = free_port()
    broken = settings.model_copy(update={"broker_url": f"redis://127.0.0.1:{port}/0"})
    with Processes(broken, tmp_path) as processes:
        with redis_server(port):
            worker = processes.start(WORKER)
            processes.start(SWEEPER)
            ended(submit(increments=1))
        lost = submit(increments=1)
        with redis_server(port):
            ended(lost)
        assert worker.poll() is None
