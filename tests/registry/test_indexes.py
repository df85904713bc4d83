"""Lists and details are found by an index, however many rows there are."""

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, event, insert, inspect, text
from sqlalchemy.orm import Session

from registry import events, job_rows, jobs
from registry.db import SessionFactory, reading, transaction
from registry.tables import Job, JobEvent
from tests.factories import Holder, make_holder, make_job

ROWS = 2000


@pytest.fixture
def holder(session: Session) -> Holder:
    holder = make_holder(session)
    job = make_job(session, holder.tenant_id)
    names = {a.columns[0].name: a.key for a in inspect(Job).mapper.column_attrs}
    values = {column: getattr(job, key) for column, key in names.items()}
    copies = [
        {**values, "id": f"job_{n:032x}", "created_at": job.created_at - timedelta(seconds=n)}
        for n in range(ROWS)
    ]
    session.execute(insert(Job.__table__), copies)  # type: ignore[arg-type]  # A Table, in truth.
    reported = [
        {
            "job_id": f"job_{n % 50:032x}",
            "seq": 10 + n // 50,
            "id": f"evt_{n:032x}",
            "type": "x",
            "level": "info",
            "data": {},
            "fence": 0,
            "created_at": job.created_at,
        }
        for n in range(ROWS)
    ]
    session.execute(insert(JobEvent), reported)
    session.execute(text("ANALYZE"))
    session.commit()
    return holder


def plans(factory: SessionFactory, engine: Engine, ask: Any) -> str:
    """How the database carries out what `ask` sends."""
    sent: list[tuple[str, Any]] = []

    def note(_c: object, _cursor: object, statement: str, values: Any, *_: object) -> None:
        sent.append((statement, values))

    event.listen(engine, "before_cursor_execute", note)
    with reading(factory) as session:
        ask(session)
    event.remove(engine, "before_cursor_execute", note)
    explain = "EXPLAIN " if engine.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN "
    with engine.connect() as connection:
        rows = [
            row
            for statement, values in sent
            if statement.startswith("SELECT") and "FROM" in statement
            for row in connection.exec_driver_sql(explain + statement, values)
        ]
    return "\n".join(map(str, rows))


def is_scanned(plan: str, table: str) -> bool:
    """Whether all rows of a table are looked at."""
    scans = (f"Seq Scan on {table}", f"SCAN {table}")
    return any(scan in line and "INDEX" not in line for scan in scans for line in plan.split("\n"))


def test_no_page_of_a_list_looks_at_every_job(
    factory: SessionFactory, engine: Engine, holder: Holder
) -> None:
    def ask(session: Session) -> None:
        page = job_rows.list_page(session, holder.tenant_id)
        job_rows.list_page(session, holder.tenant_id, after=page.items[-1].id)

    plan = plans(factory, engine, ask)
    assert "ix_jobs_tenant_id_created_at_id" in plan
    assert not is_scanned(plan, "jobs"), plan


def test_a_job_and_its_events_are_found_by_their_keys(
    factory: SessionFactory, engine: Engine, holder: Holder
) -> None:
    def ask(session: Session) -> None:
        jobs.get(session, holder.tenant_id, f"job_{0:032x}")
        events.list_after(session, f"job_{0:032x}", 20)

    plan = plans(factory, engine, ask)
    assert not is_scanned(plan, "jobs"), plan
    assert not is_scanned(plan, "job_events"), plan


def test_a_scan_would_be_noticed(factory: SessionFactory, engine: Engine, holder: Holder) -> None:
    plan = plans(factory, engine, lambda s: s.execute(text("SELECT * FROM jobs")).all())
    assert is_scanned(plan, "jobs")
    with transaction(factory) as session:
        assert session.get(Job, f"job_{1:032x}") is not None
