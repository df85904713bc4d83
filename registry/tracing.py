"""Spans for OpenTelemetry where it is installed (`espalier[otel]`), and nothing where it is not.

A job lives longer than any trace: its spans carry its id, attempt and fence, by which they are
found, as its log lines are.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

try:
    from opentelemetry import trace
except ImportError:  # pragma: no cover  # A process of its own tests it.
    trace = None  # type: ignore[assignment]

Attribute = str | int | float | bool
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def configure(service: str) -> None:
    """Send this process's spans to where OpenTelemetry's own variables say, if they name a place.

    Raises:
        ImportError: they do, and the extra is not installed.
    """
    if not any(os.environ.get(name) for name in _ENDPOINTS):
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: service}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


def provider() -> Any:
    """Who takes this process's spans; None where nobody does."""
    found = trace.get_tracer_provider() if trace is not None else None
    # What stands in for a provider takes none, and asking it is a fiftieth of reading a job.
    return found if found is not None and not isinstance(found, trace.ProxyTracerProvider) else None


@contextmanager
def span(name: str, **attributes: Attribute) -> Iterator[dict[str, Attribute]]:
    """A span around the block; what the block puts into the mapping it yields is added at the end.

    An error that leaves the block is recorded.
    """
    found: dict[str, Attribute] = {}
    takes = provider()
    if takes is None:
        yield found
        return
    with takes.get_tracer(__name__).start_as_current_span(name, attributes=attributes) as current:
        try:
            yield found
        finally:
            current.set_attributes(found)


def record(name: str, started: datetime, ended: datetime, **attributes: Attribute) -> None:
    """A span of something that is over, as a child of the current one."""
    takes = provider()
    if takes is None:
        return
    over: Any = takes.get_tracer(__name__).start_span(
        name, attributes=attributes, start_time=_nanoseconds(started)
    )
    over.end(_nanoseconds(ended))


def _nanoseconds(at: datetime) -> int:
    return int(at.timestamp() * 1e9)
