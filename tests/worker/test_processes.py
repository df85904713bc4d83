"""Real Celery workers and sweepers, killed for real: SQLite with files, Postgres with Valkey."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import redis

from registry import api_keys, outbox
from registry.db import SessionFactory, create_engine, reading, session_factory, transaction
from registry.migrate import migrate
from registry.queue import celery_app, publisher
from registry.settings import Settings
from registry.status import JobStatus
from registry.storage import store_for
from registry.tables import Increment, Job, Worker
from tests.servers import free_port, postgres_that_restarts, redis_server
from tests.worker.conftest import STAND_IN, Submit, submit_stand_in
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
    job_id = submit(increments=5, step_seconds=0.4)
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


def test_a_worker_that_was_frozen_past_its_lease_finds_it_lost(
    processes: Processes,
    submit: Submit,
    look: Look,
    factory: SessionFactory,
    ended: Callable[[str], None],
) -> None:
    """Stopped with its child in the middle of an increment, and woken when another has the job."""
    job_id = submit(increments=6, step_seconds=0.3)
    processes.start(SWEEPER)
    frozen = processes.start(WORKER)
    wait_until(lambda: look(job_id).increments_done >= 1)
    [child] = children_of(frozen)
    child.send_signal(signal.SIGSTOP)
    # Right after it renewed its lease: a transaction that froze too would hold SQLite's one lock.
    renewed = look(job_id).lease_until
    wait_until(lambda: look(job_id).lease_until != renewed)
    frozen.send_signal(signal.SIGSTOP)
    fence, done = look(job_id).fence, look(job_id).increments_done

    processes.start(WORKER)
    wait_until(lambda: look(job_id).increments_done > done)
    for process in (child, frozen):
        process.send_signal(signal.SIGCONT)
    wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
    ended(job_id)
    with transaction(factory) as session:
        late = session.query(Increment).where(Increment.idx > done + 1, Increment.fence <= fence)
        assert late.count() == 0


def test_a_power_cut_of_the_database_under_a_running_job_costs_time_only(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    redis_url: str = request.getfixturevalue("redis_url")
    with postgres_that_restarts() as (url, restart):
        settings = Settings(
            data_dir=tmp_path / "data",
            database_url=url,
            broker_url=redis_url,
            child_command=STAND_IN,
            lease_seconds=3.0,
            rehint_seconds=1.0,
            storage_reserve_bytes=0,
        )
        migrate(settings)
        engine = create_engine(settings)
        factory = session_factory(engine)
        with Processes(settings, tmp_path) as processes:
            processes.start(SWEEPER)
            processes.start(WORKER)
            _survive_restarts(factory, settings, restart)
        engine.dispose()


def _survive_restarts(
    factory: SessionFactory, settings: Settings, restart: Callable[[], None]
) -> None:
    def job() -> Job:
        with reading(factory) as session:
            return session.get_one(Job, job_id)

    with transaction(factory) as session:
        tenant = api_keys.get_or_create_tenant(session)
    job_id = submit_stand_in(factory, tenant.id, 6, 4, {"step_seconds": 0.2})
    for increment in (1, 3):
        wait_until(lambda done=increment: job().increments_done >= done)
        restart()
    wait_until(lambda: job().finished_at)
    # The child went on training, and its worker kept the lease: nobody took it for dead.
    assert (job().status, job().attempt, job().failures) == (JobStatus.SUCCEEDED, 1, 0)
    check_history(factory, store_for(settings.artifacts_url), job_id)
