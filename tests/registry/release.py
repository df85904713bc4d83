"""The statements of a release, recorded to be run against the schemas of later ones.

`python -m tests.registry.release FILE` goes through what a worker, a sweeper and a user do, on both
databases, and writes down every statement with its parameters and how many rows it touched.
"""

import gzip
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from psycopg.types.json import Jsonb
from sqlalchemy import Connection, event
from sqlalchemy.orm import Session

from pruning.events import StepFinished
from registry import (
    api_keys,
    commits,
    events,
    idempotency,
    jobs,
    leases,
    outbox,
    progress,
    sweep,
    workers,
)
from registry.db import create_engine, transaction
from registry.failures import JobError
from registry.migrate import current_revision, migrate
from registry.settings import Settings
from registry.sweep import backoff
from tests.registry.conftest import RECIPE, REQUEST
from tests.servers import postgres_server
from tests.worker.increments import commit_next
from worker.workplace import Workplace, open_workplace

FILE = Path(__file__).with_name("previous_release.json.gz")
_WRITES = ("INSERT", "UPDATE", "DELETE")

Statement = dict[str, Any]


def load(dialect: str) -> tuple[str, list[Statement]]:
    """The schema's revision at the previous release, and its statements in this dialect."""
    recorded = json.loads(gzip.decompress(FILE.read_bytes()))
    return recorded["revision"], recorded[dialect]


def replay(connection: Connection, statements: list[Statement]) -> None:
    """Run recorded statements; each must touch as many rows as it did."""
    cursor = connection.connection.cursor()
    for statement in statements:
        cursor.execute(statement["sql"], _decoded(statement["parameters"]))
        assert _touched(cursor, statement["sql"]) == statement["rows"], statement["sql"]
        if cursor.description is not None:
            cursor.fetchall()


def _touched(cursor: Any, sql: str) -> int | None:
    # SQLite counts the rows of RETURNING only as they are fetched.
    counted = sql.startswith(_WRITES) and cursor.description is None
    return int(cursor.rowcount) if counted else None


# --- recording ------------------------------------------------------------------------------------


def record(settings: Settings, directory: Path) -> list[Statement]:
    """What this release says to a fresh database."""
    migrate(settings)
    place = open_workplace(settings)
    engine = place.factory.kw["bind"]
    statements: list[Statement] = []

    def note(_connection: Any, cursor: Any, sql: str, parameters: Any, _c: Any, many: bool) -> None:
        if sql.startswith("BEGIN"):
            return
        rows = _touched(cursor, sql)
        for one in parameters if many else [parameters]:
            written = None if rows is None else rows // (len(parameters) if many else 1)
            statements.append({"sql": sql, "parameters": _encoded(one), "rows": written})

    event.listen(engine, "after_cursor_execute", note)
    _live(place, directory)
    engine.dispose()
    return statements


def _live(place: Workplace, directory: Path) -> None:
    with transaction(place.factory) as session:
        tenant = api_keys.get_or_create_tenant(session, "tenant")
        api_keys.create(session, tenant, api_keys.SCOPES)
        idempotency.begin(session, tenant_id=tenant.id, key="k", fingerprint="0" * 64)
        going, failing, leaving = (_submit(session, tenant.id) for _ in range(3))
        outbox.relay(session, lambda _: None)
        workers.beat(session, place.identity, status="online", current_job_id=going)
    with transaction(place.factory) as session:
        held = {j: leases.acquire(session, j, "w", 60) for j in (going, failing, leaving)}
    lease, failed, left = held[going], held[failing], held[leaving]
    assert lease is not None
    assert failed is not None
    assert left is not None
    with transaction(place.factory) as session:
        progress.record_phase(session, lease, "training", 1)
        progress.record_steps(session, lease, [_step()], eta_seconds=5.0)
        progress.record_event(session, lease, "warning", {"code": "c", "message": "m"})
        leases.renew(session, lease)
    commit_next(place, lease, directory)
    commit_next(place, left, directory)
    commit_next(place, left, directory, final=True)
    with transaction(place.factory) as session:
        error = JobError(code="internal", message="m", retryable=True)
        commits.fail(session, failed, error, cause="error", backoff=backoff(place.settings))
        jobs.request_pause(session, jobs.lock(session, going))
        leases.release(session, lease, cause="pause")
        sweep.sweep(session, place.settings)
        events.list_after(session, going)
        workers.beat(session, place.identity, status="stopped", current_job_id=None)


def _submit(session: Session, tenant_id: str) -> str:
    return jobs.create(session, tenant_id=tenant_id, recipe=RECIPE, spec=REQUEST).id


def _step() -> StepFinished:
    return StepFinished(
        increment=1,
        step=1,
        num_tokens=10,
        loss=4.0,
        learning_rate=1e-4,
        grad_norm=1.0,
        tokens_per_second=100.0,
    )


def _encoded(value: Any) -> Any:
    match value:
        case dict():
            return {name: _encoded(item) for name, item in value.items()}
        case list() | tuple():
            return [_encoded(item) for item in value]
        case datetime():
            return {"$time": value.isoformat()}
        case Jsonb():
            return {"$json": value.obj}
        case _:
            return value


def _decoded(value: Any) -> Any:
    match value:
        case {"$time": text}:
            return datetime.fromisoformat(text)
        case {"$json": content}:
            return Jsonb(content)
        case dict():
            return {name: _decoded(item) for name, item in value.items()}
        case list():
            return [_decoded(item) for item in value]
        case _:
            return value


@contextmanager
def _fresh() -> Iterator[Settings]:
    with tempfile.TemporaryDirectory() as directory:
        yield Settings(data_dir=Path(directory), storage_reserve_bytes=0)


def main(file: Path) -> None:
    """Record this release into a file."""
    recorded: dict[str, Any] = {}
    with _fresh() as settings, tempfile.TemporaryDirectory() as directory:
        recorded["sqlite"] = record(settings, Path(directory))
        recorded["revision"] = current_revision(create_engine(settings))
    with _fresh() as settings, tempfile.TemporaryDirectory() as directory, postgres_server() as url:
        changed = settings.model_copy(update={"database_url": url})
        recorded["postgresql"] = record(changed, Path(directory))
    file.write_bytes(gzip.compress(json.dumps(recorded).encode(), mtime=0))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
