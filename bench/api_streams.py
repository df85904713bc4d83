"""Many clients on the event streams of a few jobs: how late events come, and what that costs."""

import asyncio
import multiprocessing
import time
from multiprocessing.synchronize import Event
from typing import Any

import httpx
import psutil

from bench.api_load import cpu_seconds, listen
from bench.api_site import Bench, bar
from registry import events, jobs
from registry.db import create_engine, session_factory, transaction
from registry.settings import Settings
from tests.api.served import serving
from tests.factories import make_job

CLIENTS, SECONDS, EVENTS_PER_SECOND, JOBS = 500, 20, 2, 10
_UNCOUNTED_ROUNDS = 4
"""Before the statements of every connection are prepared."""
_LAST_SECONDS = 2.0
"""For what is still under way when the last event has been written."""
# The default of the service.
POLLING = {"ESPALIER_POLL_SECONDS": "0.1"}


def bench_streams(bench: Bench) -> dict[str, Any]:
    """500 clients on 10 jobs, each of which reports twice a second, all in one transaction."""
    with transaction(bench.factory) as session:
        ids = [make_job(session, bench.holder.tenant_id).id for _ in range(JOBS)]
    spawn = multiprocessing.get_context("spawn")
    begun = spawn.Event()
    # A process of its own: in a thread of this one it would hold up those who read.
    writer = spawn.Process(target=_report, args=(bench.settings, ids, begun), daemon=True)
    with serving(bench.settings, POLLING) as api:
        httpx.get(f"{api.url}/v1/jobs", headers=bench.holder.headers, trust_env=False)
        before, spent_before = psutil.Process(api.pid).memory_info().rss, cpu_seconds(api.pid)
        writer.start()
        paths = [f"/v1/jobs/{ids[n % JOBS]}/stream" for n in range(CLIENTS)]
        rounds = SECONDS * EVENTS_PER_SECOND
        seconds = (_UNCOUNTED_ROUNDS + rounds) / EVENTS_PER_SECOND + _LAST_SECONDS
        delays = asyncio.run(listen(api.url, paths, bench.holder.secret, begun.set, seconds))
        memory = psutil.Process(api.pid).memory_info().rss - before
        spent = cpu_seconds(api.pid) - spent_before
        writer.join()
    found = {
        "clients": CLIENTS,
        "deliveries": len(delays),
        "expected": CLIENTS * rounds,
        "p50_ms": 1000 * delays[len(delays) // 2],
        "p99_ms": 1000 * delays[int(0.99 * len(delays))],
        "max_ms": 1000 * delays[-1],
        "kb_per_client": memory / 1000 / CLIENTS,
        "cpu_us_per_delivery": 1e6 * spent / len(delays),
    }
    bar("streams: share of the events delivered", len(delays) / found["expected"], least=1.0)
    bar("streams: p99 delay, ms", found["p99_ms"], most=250)
    bar("streams: KB per client", found["kb_per_client"], most=60)
    return found


def _report(settings: Settings, ids: list[str], begun: Event) -> None:
    """An event of every job, so many times a second by the clock, whatever each time takes."""
    factory = session_factory(create_engine(settings))
    begun.wait()
    started = time.monotonic()
    for number in range(_UNCOUNTED_ROUNDS + SECONDS * EVENTS_PER_SECOND):
        time.sleep(max(0.0, started + number / EVENTS_PER_SECOND - time.monotonic()))
        counted = number >= _UNCOUNTED_ROUNDS
        with transaction(factory) as session:
            for job_id in ids:
                job = jobs.lock(session, job_id)
                name = "sent_at" if counted else "warming"
                events.append(session, job, "bench.tick", {name: time.time()})
