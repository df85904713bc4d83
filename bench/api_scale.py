"""Jobs read and listed in an empty database, and again in a full one."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import text

from bench.api_load import Asked, Spent, closed_loop
from bench.api_site import Bench, asked_of, bar, figures
from registry.db import create_engine, transaction
from tests.api.served import Served, serving

_WARMING = 200
_JOBS_AT_ONCE = 5000
"""One statement for all would take longer than the service lets any take."""


def bench_scale(
    bench: Bench, *, num_jobs: int, requests: int, events_per_job: int = 50
) -> dict[str, Any]:
    """Detail and list before and after the database is filled."""
    asked = {name: one for name, one in asked_of(bench).items() if name != "post"}
    found: dict[str, Any] = {"jobs": num_jobs, "events": num_jobs * events_per_job}
    with serving(bench.settings) as api:
        empty = _measured(api, asked, requests)
        _fill(bench, num_jobs, events_per_job)
        full = _measured(api, asked, requests)
    for name in asked:
        ratio = full[name].percentile(0.99) / empty[name].percentile(0.99)
        cpu = empty[name].per_cpu_second / full[name].per_cpu_second
        found[name] = {
            "empty": figures(empty[name]),
            "full": figures(full[name]),
            "p99_ratio": ratio,
            "cpu_ratio": cpu,
        }
        bar(f"{name}: p99 full / empty", ratio, most=1.2)
    return found


def _measured(api: Served, asked: Mapping[str, Asked], requests: int) -> dict[str, Spent]:
    """A loop over each request, once its statements are prepared on every connection."""
    found = {}
    for name, one in asked.items():
        closed_loop(api.url, api.pid, one, requests=_WARMING)
        found[name] = closed_loop(api.url, api.pid, one, requests=requests)
    return found


def _fill(bench: Bench, num_jobs: int, events_per_job: int) -> None:
    """Copies of one ended job and of its first event."""
    columns = [c for c in _columns(bench, "jobs") if c not in ("id", "created_at", "status")]
    listed = ", ".join(f'"{c}"' for c in columns if c not in ("lease_owner", "lease_until"))
    copy_jobs = (
        f"INSERT INTO jobs (id, created_at, status, {listed}) "
        "SELECT 'job_' || lpad(to_hex(n), 32, '0'), j.created_at - n * interval '1 second', "
        f"'failed', {listed} FROM jobs j, generate_series(1, :count) n WHERE j.id = :job"
    )
    copy_events = (
        "INSERT INTO job_events (job_id, seq, id, type, level, data, fence, created_at) "
        "SELECT 'job_' || lpad(to_hex(n), 32, '0'), s, "
        "'evt_' || lpad(to_hex(n), 24, '0') || lpad(to_hex(s), 8, '0'), 'bench', 'info', '{}', 0, "
        "now() FROM generate_series(CAST(:first AS integer), CAST(:last AS integer)) n, "
        "generate_series(1, CAST(:events AS integer)) s"
    )
    engine = create_engine(bench.settings)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("SET statement_timeout = 0"))
        connection.execute(text(copy_jobs), {"count": num_jobs, "job": bench.job_id})
        for first in range(1, num_jobs + 1, _JOBS_AT_ONCE):
            last = min(first + _JOBS_AT_ONCE - 1, num_jobs)
            values = {"first": first, "last": last, "events": events_per_job}
            connection.execute(text(copy_events), values)
        for table in ("jobs", "job_events"):
            connection.execute(text(f"VACUUM ANALYZE {table}"))
    engine.dispose()


def _columns(bench: Bench, table: str) -> list[str]:
    query = "SELECT column_name FROM information_schema.columns WHERE table_name = :table"
    with transaction(bench.factory) as session:
        return list(session.scalars(text(query), {"table": table}))
