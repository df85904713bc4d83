"""Many clients on the event streams of a few jobs: how late events come, and what that costs."""

import asyncio
import threading
import time
from typing import Any

import httpx
import psutil

from bench.api_load import cpu_seconds, listen
from bench.api_site import Bench, bar
from registry import events, jobs
from registry.db import SessionFactory, transaction
from tests.api.served import serving
from tests.factories import make_job

STREAM_CLIENTS, STREAM_SECONDS, EVENTS_PER_SECOND = 500, 20, 2
# The default of the service.
POLLING = {"ESPALIER_POLL_SECONDS": "0.1"}


def bench_streams(bench: Bench) -> dict[str, Any]:
    """500 clients on 10 jobs, each of which reports twice a second."""
    with transaction(bench.factory) as session:
        ids = [make_job(session, bench.holder.tenant_id).id for _ in range(10)]
    stop = threading.Event()
    with serving(bench.settings, POLLING) as api:
        httpx.get(f"{api.url}/v1/jobs", headers=bench.holder.headers, trust_env=False)
        before, spent_before = psutil.Process(api.pid).memory_info().rss, cpu_seconds(api.pid)
        writer = threading.Thread(target=_report, args=(bench.factory, ids, stop))
        writer.start()
        paths = [f"/v1/jobs/{ids[n % len(ids)]}/stream" for n in range(STREAM_CLIENTS)]
        try:
            delays = asyncio.run(listen(api.url, paths, bench.holder.secret, STREAM_SECONDS))
        finally:
            stop.set()
            writer.join()
        memory = psutil.Process(api.pid).memory_info().rss - before
        spent = cpu_seconds(api.pid) - spent_before
    found = {
        "clients": STREAM_CLIENTS,
        "deliveries": len(delays),
        "expected": STREAM_CLIENTS * STREAM_SECONDS * EVENTS_PER_SECOND,
        "p50_ms": 1000 * delays[len(delays) // 2],
        "p99_ms": 1000 * delays[int(0.99 * len(delays))],
        "kb_per_client": memory / 1000 / STREAM_CLIENTS,
        "cpu_us_per_delivery": 1e6 * spent / len(delays),
    }
    bar("streams: p99 delay, ms", found["p99_ms"], most=250)
    bar("streams: KB per client", found["kb_per_client"], most=60)
    return found


def _report(factory: SessionFactory, ids: list[str], stop: threading.Event) -> None:
    while not stop.wait(1 / EVENTS_PER_SECOND):
        with transaction(factory) as session:
            for job_id in ids:
                job = jobs.lock(session, job_id)
                events.append(session, job, "bench.tick", {"sent_at": time.time()})
