"""The Celery worker: `celery -A worker.app worker --pool threads --concurrency 1`.

A worker that is told to end (SIGTERM, SIGINT) stops its child at the next boundary and gives the
job back; no shutdown mode of Celery does that for a long task.
"""

import functools
import logging
import os
from typing import Any

from celery import Celery, signals

from registry import logs, tracing
from registry.queue import celery_app
from registry.settings import Settings
from worker.heartbeat import Presence
from worker.machine import with_queues
from worker.playground import Answering
from worker.tasks import register
from worker.workplace import Workplace, open_workplace


def build_app(settings: Settings) -> Celery:
    """The application with its task and its hooks; nothing is opened before a worker starts."""
    app = celery_app(settings)
    # Built once and kept: the signals below hold their receivers weakly.
    workplace = functools.cache(lambda: open_workplace(settings))
    presence = functools.cache(lambda: Presence(workplace()))
    register(app, workplace, presence)
    answering = functools.cache(lambda: Answering(workplace()))
    _connect(settings, workplace, presence, answering)
    return app


def _connect(settings: Settings, workplace: Any, presence: Any, answering: Any) -> None:
    def configure_logging(loglevel: int = logging.INFO, **_: object) -> None:
        logs.configure(settings.log_format, loglevel)

    def ready(**_: object) -> None:
        tracing.configure("espalier-worker")
        presence().start()
        answering().start()
        place: Workplace = workplace()
        place.parking.park()

    def shutting_down(**_: object) -> None:
        place: Workplace = workplace()
        place.stopping.set()

    def shut_down(**_: object) -> None:
        place: Workplace = workplace()
        place.parking.close()
        keeper: Presence = presence()
        keeper.stop()
        answerer: Answering = answering()
        answerer.stop()

    signals.setup_logging.connect(configure_logging, weak=False)
    signals.worker_ready.connect(ready, weak=False)
    signals.worker_shutting_down.connect(shutting_down, weak=False)
    signals.worker_shutdown.connect(shut_down, weak=False)


app = build_app(with_queues(Settings(), os.environ))
