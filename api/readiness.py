"""The readiness checks, each bounded in time so that a hanging part is reported and not joined."""

import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as Overdue
from datetime import timedelta
from typing import Literal

from sqlalchemy import Engine, select, text
from sqlalchemy.exc import SQLAlchemyError

from api.schemas.operations import Check
from registry import outbox
from registry.db import SessionFactory, database_now, reading
from registry.errors import RegistryError
from registry.migrate import is_at_head
from registry.settings import Settings
from registry.storage import ArtifactStore, LocalStore
from registry.tables import Worker

Severity = Literal["ok", "degraded", "failed"]
_HINT_PATIENCE = timedelta(seconds=10)
_ORDER: tuple[Severity, ...] = ("ok", "degraded", "failed")


def run_checks(checks: Mapping[str, Callable[[], Check]], *, seconds: float) -> dict[str, Check]:
    """All checks at once; one that raises or takes longer than `seconds` has failed."""
    pool = ThreadPoolExecutor(max_workers=len(checks), thread_name_prefix="readiness")
    try:
        running = {name: pool.submit(check) for name, check in checks.items()}
        results = {}
        for name, future in running.items():
            try:
                results[name] = future.result(timeout=seconds)
            except Overdue:
                results[name] = Check(status="failed", detail=f"no answer in {seconds:g} s")
            except (SQLAlchemyError, RegistryError, OSError) as error:
                results[name] = Check(status="failed", detail=type(error).__name__)
        return results
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def worst_of(checks: Mapping[str, Check]) -> Severity:
    """The most severe status among the checks."""
    return max((check.status for check in checks.values()), key=_ORDER.index, default="ok")


def check_database(engine: Engine) -> Check:
    """The database answers."""
    with engine.connect() as connection:
        connection.execution_options(reading=True).execute(text("SELECT 1"))
    return Check(status="ok")


def check_migrations(engine: Engine) -> Check:
    """The schema is the one this code was written for."""
    if is_at_head(engine):
        return Check(status="ok")
    return Check(status="failed", detail="run `python -m registry migrate`")


def check_artifacts(store: ArtifactStore) -> Check:
    """The artifact store takes a file."""
    store.require_space(0)
    if isinstance(store, LocalStore):
        with tempfile.TemporaryFile(dir=store.root) as file:
            file.write(b"ready")
    return Check(status="ok")


def check_broker(sessions: SessionFactory) -> Check:
    """Hints leave: the sweeper hands them to the broker, and keeps what that does not take."""
    with reading(sessions) as session:
        now = database_now(session)
        since = outbox.waiting_since(session, now)
    if since is not None and now - since > _HINT_PATIENCE:
        return Check(status="degraded", detail="hints are not sent: is the broker up, a sweeper?")
    return Check(status="ok")


def check_worker(sessions: SessionFactory, settings: Settings) -> Check:
    """A worker has been heard of lately; without one jobs wait."""
    with reading(sessions) as session:
        since = database_now(session) - timedelta(seconds=settings.worker_timeout_seconds)
        query = select(Worker.id).where(Worker.status == "online", Worker.heartbeat_at > since)
        if session.scalars(query.limit(1)).first() is None:
            return Check(status="degraded", detail="no live worker: jobs wait in the queue")
    return Check(status="ok")
