"""Spans as an exporter gets them, and a service without OpenTelemetry."""

import subprocess
import sys
from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from api.main import create_app
from registry import tracing
from tests.worker.conftest import Submit
from worker import runner
from worker.workplace import Workplace

WITHOUT = """
import sys
sys.modules["opentelemetry"] = None
from registry import tracing
with tracing.span("claim", job_id="j") as found:
    found["fence"] = 1
assert tracing.trace is None
"""


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """The SDK's own exporter into memory, for this test alone."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "provider", lambda: provider)
    yield exporter
    provider.shutdown()


def named(exporter: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    return [span for span in exporter.get_finished_spans() if span.name == name]


def test_a_job_leaves_spans_of_its_claim_its_phases_and_its_commits(
    workplace: Workplace, submit: Submit, exporter: InMemorySpanExporter
) -> None:
    job_id = submit(increments=2)
    lease = runner.claim(workplace)
    assert lease is not None
    runner.work(workplace, lease)
    [claim], [slice_] = named(exporter, "claim"), named(exporter, "slice")
    assert dict(claim.attributes or {}) == {"job_id": job_id, "attempt": 1, "fence": 1}
    assert slice_.context is not None
    for name in ("commit", "phase pruning", "phase training"):
        spans = named(exporter, name)
        assert [dict(s.attributes or {}) for s in spans] == [
            {"job_id": job_id, "increment": number, "fence": 1} for number in (1, 2)
        ]
        assert {s.parent.span_id for s in spans if s.parent} == {slice_.context.span_id}


def test_a_request_is_a_span_named_by_its_route(
    workplace: Workplace, exporter: InMemorySpanExporter
) -> None:
    with TestClient(create_app(workplace.settings)) as client:
        client.get("/v1/jobs/job_1")
    [span] = named(exporter, "HTTP GET")
    assert dict(span.attributes or {}) == {
        "http.request.method": "GET",
        "http.route": "/v1/jobs/{job_id}",
        "http.response.status_code": 401,
    }


def test_without_the_package_there_are_no_spans_and_no_errors() -> None:
    subprocess.run([sys.executable, "-c", WITHOUT], check=True)
