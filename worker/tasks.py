"""The Celery task: a hint that a job may be runnable, whatever it says beyond that."""

import logging
from collections.abc import Callable

from celery import Celery

from registry import outbox
from registry.db import transaction
from registry.outbox import RUN_JOB
from registry.queue import publisher
from worker import runner
from worker.heartbeat import Presence
from worker.logs import keep_logs
from worker.uploads import drop_uploads
from worker.workplace import Workplace

logger = logging.getLogger(__name__)


def register(
    app: Celery, workplace: Callable[[], Workplace], presence: Callable[[], Presence]
) -> None:
    """Give the application its one task."""

    @app.task(name=RUN_JOB, ignore_result=True, shared=False)  # type: ignore[untyped-decorator]
    def run_job(job_id: object = None, *others: object, **named: object) -> None:
        if not isinstance(job_id, str) or others or named:
            logger.warning("a message of another version is ignored")
            return
        take_hint(app, workplace(), presence())


def take_hint(app: Celery, workplace: Workplace, presence: Presence) -> None:
    """Run a slice of the job whose turn it is, then send what it left in the outbox.

    That need not be the job of the hint: it is only what woke this worker up.
    """
    lease = runner.claim(workplace)
    if lease is None:
        return
    presence.current_job_id = lease.job_id
    try:
        runner.work(workplace, lease)
    finally:
        presence.current_job_id = None
    # Not earlier: getting ready would take its processors from the run.
    if not workplace.stopping.is_set():
        workplace.parking.park()
    keep_logs(workplace, lease.job_id)
    drop_uploads(workplace, lease.job_id)
    with transaction(workplace.factory) as session:
        outbox.relay(session, publisher(app))
