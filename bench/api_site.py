"""What the benches of the API share: a furnished database, the requests, bars, figures."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from bench.api_load import Asked, Spent
from bench.contract import database
from registry.db import SessionFactory, create_engine, session_factory, transaction
from registry.settings import Settings
from registry.storage import LocalStore
from tests.factories import (
    SMALL_REQUEST,
    Holder,
    make_checkpoint,
    make_holder,
    make_job,
    make_steps,
    start_job,
)

ROUNDS = 3


@dataclass(frozen=True)
class Bench:
    """A furnished database and who asks."""

    settings: Settings
    factory: SessionFactory
    holder: Holder
    directory: Path
    job_id: str


@contextmanager
def furnished(directory: Path) -> Iterator[Bench]:
    """A Postgres database with 30 jobs, one of them under way."""
    with database("postgres", directory / "data") as settings:
        factory = session_factory(create_engine(settings))
        store = LocalStore(settings.data_dir / "artifacts")
        with transaction(factory) as session:
            holder = make_holder(session)
            for _ in range(30):
                job = make_job(session, holder.tenant_id, name="bench")
                start_job(session, job)
                make_steps(session, job, first=1, count=10)
            make_checkpoint(session, store, job, directory)
        yield Bench(settings, factory, holder, directory, job.id)


def bar(name: str, found: float, least: float | None = None, most: float | None = None) -> bool:
    """Print a figure beside its bar; whether it is met."""
    met = (least is None or found >= least) and (most is None or found <= most)
    wanted = f">= {least}" if least is not None else f"<= {most}"
    print(f"{name:58} {wanted:>10} {found:10.3f}  {'met' if met else 'MISSED'}")
    return met


def asked_of(bench: Bench) -> dict[str, Asked]:
    """The three requests."""
    body = json.dumps(SMALL_REQUEST).encode()
    json_body = {**bench.holder.headers, "Content-Type": "application/json"}
    return {
        "get": Asked("GET", f"/v1/jobs/{bench.job_id}", headers=bench.holder.headers),
        "list": Asked("GET", "/v1/jobs?limit=20", headers=bench.holder.headers),
        "post": Asked("POST", "/v1/jobs", body, json_body),
    }


def figures(spent: Spent) -> dict[str, float]:
    """What is kept of a loop."""
    return {
        "requests_per_cpu_second": round(spent.per_cpu_second, 1),
        "cpu_ms": round(1000 / spent.per_cpu_second, 3),
        "requests_per_second": round(spent.requests / spent.seconds, 1),
        "p50_ms": round(1000 * spent.percentile(0.5), 2),
        "p99_ms": round(1000 * spent.percentile(0.99), 2),
    }


def wait_for(port: int) -> None:
    """Return once something answers on the port."""
    for _ in range(600):
        try:
            httpx.get(f"http://127.0.0.1:{port}/", timeout=5, trust_env=False)
        except httpx.TransportError:
            time.sleep(0.1)
        else:
            return
    raise RuntimeError("the server does not start")
