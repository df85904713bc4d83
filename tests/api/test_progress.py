"""Events as pages and as a stream, curves and widths."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient

from registry import events, jobs
from registry.db import SessionFactory, transaction
from registry.tables import Job
from tests.factories import LAYERS, Holder, make_steps


@pytest.fixture
def server_url(app: FastAPI) -> Iterator[str]:
    """The application behind a real server: the in-process client cannot stream."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join(10)


def parse(lines: Iterator[str]) -> Iterator[dict[str, str]]:
    """Server-sent events as dictionaries."""
    event: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(": ")
        if line == "":
            if event:
                yield event
            event = {}
        elif name:
            event[name] = value


def test_events_are_paged_without_gaps(client: TestClient, running_job_id: str) -> None:
    seqs: list[int] = []
    after = 0
    while True:
        page = client.get(f"/v1/jobs/{running_job_id}/events?after={after}&limit=2").json()
        seqs += [event["seq"] for event in page["data"]]
        if not page["has_more"]:
            break
        after = page["last_seq"]
    assert seqs == list(range(1, len(seqs) + 1))
    assert len(seqs) >= 5


def test_a_stream_goes_on_after_the_last_event_id_and_ends_with_the_job(
    server_url: str, holder: Holder, factory: SessionFactory, running_job_id: str
) -> None:
    def finish() -> None:
        with transaction(factory) as session:
            job = session.get_one(Job, running_job_id)
            make_steps(session, job, first=51, count=5)
            events.append(session, job, "warning", {"code": "x", "message": "line\nbreak"})
        with transaction(factory) as session:
            job = jobs.lock(session, running_job_id)
            job.outcome = "target_reached"
            jobs.transition(session, job, jobs.JobStatus.SUCCEEDED)

    timer = threading.Timer(0.3, finish)
    headers = {**holder.headers, "Last-Event-ID": "3"}
    url = f"{server_url}/v1/jobs/{running_job_id}/stream"
    with httpx.stream("GET", url, headers=headers, timeout=20) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        timer.start()
        received = list(parse(response.iter_lines()))
    numbered = [event for event in received if "id" in event]
    ids = [int(event["id"]) for event in numbered]
    assert ids == list(range(4, 4 + len(ids)))
    assert numbered[-1]["event"] == "job.succeeded"
    assert "metrics" in [event.get("event") for event in received]
    warning = next(event for event in numbered if event["event"] == "warning")
    assert json.loads(warning["data"])["data"]["message"] == "line\nbreak"


def test_a_stream_of_no_job_is_a_404(client: TestClient) -> None:
    assert client.get("/v1/jobs/job_none/stream").status_code == 404


def test_curves_are_columns_of_one_length(client: TestClient, running_job_id: str) -> None:
    url = f"/v1/jobs/{running_job_id}/metrics"
    found: Any = client.get(url, params={"keys": ["loss", "num_tokens"]}).json()
    assert found["step"] == list(range(1, 51))
    assert {key: len(values) for key, values in found["columns"].items()} == {
        "loss": 50,
        "num_tokens": 50,
    }
    thinned = client.get(url, params={"max_points": 10, "from_step": 11}).json()
    assert len(thinned["step"]) == 10
    assert (thinned["step"][0], thinned["step"][-1], thinned["total_points"]) == (11, 50, 40)


def test_widths_are_a_row_per_increment_from_the_base_model(
    client: TestClient, running_job_id: str
) -> None:
    found = client.get(f"/v1/jobs/{running_job_id}/widths").json()
    assert found["increments"] == [0, 1]
    assert [len(row) for row in found["layers"]] == [LAYERS, LAYERS]
    assert found["layers"][0][0]["intermediate_size"] == 1536
