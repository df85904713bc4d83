"""The process of the sweeper: rounds of sweeping, sending the outbox and webhooks, collecting."""

import logging
import threading
import time

from celery import Celery
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from registry import deliveries, garbage, outbox
from registry.db import SessionFactory, session_factory, transaction
from registry.errors import StorageError
from registry.queue import celery_app, publisher
from registry.settings import Settings
from registry.storage import ArtifactStore, store_for
from registry.sweep import resume_stored, sweep

logger = logging.getLogger("registry")


def run_until(stop: threading.Event, engine: Engine, settings: Settings) -> None:
    """Sweep, send and collect again and again until `stop` is set."""
    queue = celery_app(settings)
    factory = session_factory(engine)
    store = store_for(settings.artifacts_url, reserve_bytes=settings.storage_reserve_bytes)
    collector = Collector(factory, store, settings)
    sender = threading.Thread(
        target=deliveries.sending,
        args=(factory, settings, settings.installation_secret, stop.wait),
        name="webhooks",
    )
    sender.start()
    while not stop.is_set():
        try:
            sweep_round(factory, settings, queue)
            collector.collect_if_due()
        except DBAPIError as error:
            logger.warning("database is away, sweeping later: %s", type(error.orig).__name__)
        stop.wait(settings.sweep_seconds)
    sender.join()


class Collector:
    """Collects garbage now and then, beside the sweeping: the store is listed far more rarely."""

    def __init__(self, factory: SessionFactory, store: ArtifactStore, settings: Settings) -> None:
        self._factory = factory
        self._store = store
        self._settings = settings
        self._collected_at = self._listed_at = float("-inf")

    def collect_if_due(self) -> None:
        """Collect what was dropped, and the orphans, each when its time has come.

        Raises:
            DBAPIError: the database is away.
        """
        now = time.monotonic()
        if now - self._collected_at < self._settings.collect_seconds:
            return
        self._collected_at = now
        try:
            self._report(garbage.collect(self._factory, self._store))
            with transaction(self._factory) as session:
                resume_stored(session, self._store, self._settings)
            if now - self._listed_at >= self._settings.garbage_age_seconds:
                self._listed_at = now
                self._report(garbage.collect_orphans(self._factory, self._store, self._settings))
        except (OSError, StorageError) as error:
            logger.warning("artifacts are away, collecting later: %s", error)

    def _report(self, collected: garbage.Collected) -> None:
        if collected:
            logger.info("collected %s", collected)


def sweep_round(factory: SessionFactory, settings: Settings, queue: Celery) -> None:
    """One sweep, then what it and everyone else left in the outbox."""
    with transaction(factory) as session:
        swept = sweep(session, settings)
    if swept:
        logger.info("swept %s", swept)
    with transaction(factory) as session:
        outbox.relay(session, publisher(queue))
