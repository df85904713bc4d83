"""`/metrics` for Prometheus: the service from the database, HTTP from this process.

No label names a tenant, a job or a path as it was sent: their number is bounded by the code.
"""

import logging
import time
from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from registry import gauges
from registry.db import SessionFactory, reading

logger = logging.getLogger(__name__)

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class Metrics:
    """What one application counts."""

    def __init__(self, sessions: SessionFactory) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "espalier_http_requests",
            "Requests answered.",
            ("method", "route", "status"),
            registry=self.registry,
        )
        self.seconds = Histogram(
            "espalier_http_request_seconds",
            "From the request to the start of its answer.",
            ("method", "route"),
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.registry.register(_Service(sessions))
        self._of: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    def count(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one answered request."""
        found = self._of.get((method, route, status))
        if found is None:
            # To look up a label's own counter takes longer than to count.
            by_route = self.seconds.labels(method, route)
            found = self.requests.labels(method, route, str(status)), by_route
            self._of[method, route, status] = found
        requests, duration = found
        requests.inc()
        duration.observe(seconds)

    def render(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self.registry)


class _Service(Collector):
    def __init__(self, sessions: SessionFactory) -> None:
        self._sessions = sessions

    def describe(self) -> Iterator[Metric]:
        # Registering must not need the database.
        return iter(())

    def collect(self) -> Iterator[Metric]:
        try:
            with reading(self._sessions) as session:
                found = gauges.read(session)
        except SQLAlchemyError:
            yield _gauge("database_up", "Whether the database answers.", 0)
            return
        yield _gauge("database_up", "Whether the database answers.", 1)
        yield from _render(found)


def _render(found: gauges.Gauges) -> Iterator[Metric]:
    yield _by("jobs", "Jobs by status.", "status", found.jobs)
    yield _gauge("queue_oldest_age_seconds", "Longest wait for a worker.", found.queue_oldest_age)
    text = "From creation to start, of jobs begun in the last hour."
    yield _by("submit_to_start_seconds", text, "quantile", found.start_waits)
    yield _gauge("leases_overdue", "Leases over and not taken back.", found.leases_overdue)
    yield _gauge("tokens_per_second", "Of all running jobs.", found.tokens_per_second)
    yield _gauge("outbox_unsent", "Messages due and not sent.", found.outbox_unsent)
    yield _gauge("outbox_lag_seconds", "Age of the oldest of them.", found.outbox_oldest_age)
    yield _by("workers", "Workers of the last day by status.", "status", found.workers)
    yield _by("blobs", "Stored blobs.", "status", found.blobs)
    yield _by("blob_bytes", "Their size.", "status", found.blob_bytes)
    yield CounterMetricFamily("espalier_increments", "Committed.", value=found.increments)
    attempts = CounterMetricFamily("espalier_attempts", "Ended, by cause.", labels=("cause",))
    for cause, count in sorted(found.attempts.items()):
        attempts.add_metric((cause,), count)
    yield attempts
    yield _by("webhook_deliveries", "Events for webhooks.", "status", found.deliveries)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"espalier_{name}", text, value=value)


def _by(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(f"espalier_{name}", text, labels=(label,))
    for key, value in sorted(values.items()):
        family.add_metric((key,), value)
    return family


class Measured:
    """ASGI middleware: counts and times requests by the template of their route."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._count(scope, message["status"], time.perf_counter() - started)
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception:
            # Answered further out, as an error of the server.
            self._count(scope, 500, time.perf_counter() - started)
            raise

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        method, route = scope["method"], getattr(scope.get("route"), "path", "unmatched")
        self.metrics.count(method, route, status, seconds)
        said = {"method": method, "route": route, "status": status, "seconds": round(seconds, 6)}
        logger.info("answered", extra=said)
