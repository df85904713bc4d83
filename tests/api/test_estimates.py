"""Estimates: what a request would lead to, before it is taken."""

import json
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from api.main import create_app
from api.model_configs import fetch_config
from api.settings import ApiSettings
from pruning.errors import ModelNotFound
from pruning.recipe_parts.model import HubModel
from registry import jobs
from registry.db import SessionFactory, transaction
from registry.settings import Settings
from tests.factories import Holder, make_job, start_job, succeed
from tests.smollm2 import CONFIG

SIZE = 134_515_008


@pytest.fixture
def settings(settings: Settings, model: Path) -> Settings:
    return settings.model_copy(update={"allowed_paths": (model.parent,)})


@pytest.fixture
def app(settings: Settings) -> FastAPI:
    return create_app(settings, ApiSettings(hub_seconds=0))


def request_of(model: Path | str, target: Any = "100M", **fields: Any) -> dict[str, Any]:
    data = {"train": {"kind": "inline", "documents": ["word " * 1000]}}
    return {"model": str(model), "target": target, "data": data, **fields}


def test_an_estimate_has_sizes_floor_memory_and_tokens(client: TestClient, model: Path) -> None:
    answer = client.post("/v1/estimates", json=request_of(model))
    assert answer.status_code == 200
    found = answer.json()
    assert found["model"]["params"] == SIZE
    assert [size["params"] for size in found["targets"]] == [100_000_000]
    assert found["targets"][0]["size_bytes"] == 200_000_000
    assert 0 < found["floor"]["params"] < 100_000_000
    assert found["increments"][-1] == 100_000_000
    assert found["tokens"] == pytest.approx(1187, abs=1)
    assert found["peak_memory_bytes"] > 28 * SIZE
    assert not found["time"]["estimate_available"]


def test_a_dry_run_has_the_same_numbers(client: TestClient, model: Path) -> None:
    estimate = client.post("/v1/estimates", json=request_of(model)).json()
    answer = client.post("/v1/jobs?dry_run=true", json=request_of(model))
    assert answer.json()["estimate"] == estimate
    assert client.get("/v1/jobs").json()["data"] == []


@pytest.mark.parametrize("path", ["/v1/estimates", "/v1/jobs", "/v1/jobs?dry_run=true"])
def test_a_target_below_the_floor_is_refused_with_the_limit(
    client: TestClient, model: Path, path: str
) -> None:
    floor = client.post("/v1/estimates", json=request_of(model)).json()["floor"]["params"]
    answer = client.post(path, json=request_of(model, floor - 1))
    assert (answer.status_code, answer.json()["code"]) == (422, "target_unreachable")
    assert answer.json()["errors"][0]["limit"] == floor


@pytest.mark.parametrize("path", ["/v1/estimates", "/v1/jobs"])
def test_an_architecture_nobody_can_prune_is_refused_at_submission(
    client: TestClient, model: Path, path: str
) -> None:
    (model / "config.json").write_text(json.dumps({**CONFIG, "model_type": "mamba"}))
    answer = client.post(path, json=request_of(model))
    assert (answer.status_code, answer.json()["code"]) == (422, "unsupported_architecture")


@pytest.mark.parametrize("path", ["/v1/estimates", "/v1/jobs"])
def test_what_its_engine_could_not_run_is_refused_at_submission(
    client: TestClient, model: Path, path: str
) -> None:
    (model / "config.json").write_text(json.dumps({**CONFIG, "model_type": "granite"}))
    answer = client.post(path, json={**request_of(model), "serve_with": ["llama.cpp"]})
    assert (answer.status_code, answer.json()["code"]) == (422, "export_refused")
    assert "granite" in answer.json()["detail"]


def test_contradicting_serving_constraints_are_refused_at_submission(
    client: TestClient, model: Path
) -> None:
    contradiction = {"serve_with": ["sglang"], "allocation": {"layout": "per_layer"}}
    answer = client.post("/v1/jobs", json={**request_of(model), **contradiction})
    assert answer.status_code == 422
    assert "sglang run models with equal layers only" in str(answer.json()["errors"])


def test_more_devices_than_heads_are_refused_at_submission(client: TestClient, model: Path) -> None:
    answer = client.post("/v1/jobs", json={**request_of(model), "tensor_parallel": 4})
    assert (answer.status_code, answer.json()["code"]) == (422, "target_unreachable")
    assert "tensor_parallel" in str(answer.json())


def test_a_directory_that_is_not_there_is_refused_at_submission(
    client: TestClient, model: Path
) -> None:
    answer = client.post("/v1/jobs", json=request_of(model.parent / "none"))
    assert (answer.status_code, answer.json()["code"]) == (422, "model_not_found")


@pytest.mark.parametrize("content", ["[]", "{", "\0", "[" * 100_000, " " * (1 << 20) + "{}"])
def test_a_configuration_that_is_none_is_refused(
    client: TestClient, model: Path, content: str
) -> None:
    (model / "config.json").write_text(content)
    answer = client.post("/v1/estimates", json=request_of(model))
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_model")


def test_a_configuration_linked_from_outside_is_not_read(
    client: TestClient, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "outside.json").write_text(json.dumps(CONFIG))
    (model / "config.json").unlink()
    (model / "config.json").symlink_to(tmp_path / "outside.json")
    answer = client.post("/v1/estimates", json=request_of(model))
    assert (answer.status_code, answer.json()["code"]) == (422, "model_not_found")


def test_without_the_hub_jobs_are_taken_and_estimates_say_why_not(client: TestClient) -> None:
    answer = client.post("/v1/estimates", json=request_of("org/name"))
    assert (answer.status_code, answer.json()["code"]) == (422, "model_unavailable")
    job = client.post("/v1/jobs", json=request_of("org/name"))
    assert (job.status_code, job.json()["estimate"]) == (201, None)


def test_time_is_estimated_by_the_pace_of_finished_jobs(
    client: TestClient, model: Path, factory: SessionFactory, holder: Holder
) -> None:
    finish_job(factory, holder)
    request = request_of(model, "110M", schedule={"num_tokens": 500_000, "num_increments": 3})
    found = client.post("/v1/estimates", json=request).json()["time"]
    # As many tokens on about as large a model, so about as long as the job before.
    assert found["estimate_available"]
    assert found["seconds"] == pytest.approx(400, rel=0.1)
    assert (found["jobs"], found["device"]) == (1, "cpu")


def test_calibration_is_foretold_with_the_time_it_takes(
    client: TestClient, model: Path, factory: SessionFactory, holder: Holder
) -> None:
    finish_job(factory, holder)
    schedule = {"num_tokens": 500_000, "num_increments": 3}
    found = {}
    for samples in ("auto", 164):
        importance = {"calibration": {"num_samples": samples}}
        request = request_of(model, "110M", schedule=schedule, importance=importance)
        found[samples] = client.post("/v1/estimates", json=request).json()
    assert found["auto"]["calibration_tokens"] == 64 * 512
    assert found[164]["calibration_tokens"] == 164 * 512
    # Each of the tokens takes as long as training on it does, at the size before the first cut.
    more = 3 * 100 * 512 / (2480 * 110_000_000 / SIZE)
    took = found[164]["time"]["seconds"] - found["auto"]["time"]["seconds"]
    assert took == pytest.approx(more, rel=0.01)


def test_another_tenants_jobs_do_not_set_the_pace(
    client: TestClient, model: Path, factory: SessionFactory, stranger: Holder
) -> None:
    finish_job(factory, stranger)
    answer = client.post("/v1/estimates", json=request_of(model))
    assert not answer.json()["time"]["estimate_available"]


def finish_job(factory: SessionFactory, holder: Holder) -> None:
    """A job of 500,000 tokens that took 400 seconds."""
    with transaction(factory) as session:
        job = make_job(session, holder.tenant_id)
        start_job(session, job)
        job.increments_done, job.params_now = 3, 110_000_000
        job.tokens_seen, job.tokens_per_second = 500_000, 2480.0
        size = {"num_calibration_samples": 64, "calibration_sequence_length": 512}
        job.resolved = {**(job.resolved or {}), **size}
        succeed(session, job)
        job.result = {**(job.result or {}), "seconds": 400.0}


def test_a_finished_job_says_how_wrong_its_estimate_was(
    client: TestClient, model: Path, factory: SessionFactory, holder: Holder
) -> None:
    finish_job(factory, holder)
    request = request_of(model, "110M", schedule={"num_tokens": 500_000, "num_increments": 3})
    created = client.post("/v1/jobs", json=request).json()
    assert created["estimate"]["seconds"] == pytest.approx(400, rel=0.1)
    assert created["estimate"]["seconds_error"] is None
    with transaction(factory) as session:
        job = jobs.lock(session, created["id"])
        start_job(session, job)
        succeed(session, job)
        took = {"checkpoint": "ckpt_0", "params": 1, "seconds": 2 * created["estimate"]["seconds"]}
        job.result = {**(job.result or {}), **took}
    found = client.get(f"/v1/jobs/{created['id']}").json()["estimate"]
    assert found["seconds_error"] == pytest.approx(-0.5)


def test_an_estimate_is_answered_in_50_milliseconds(client: TestClient, model: Path) -> None:
    client.post("/v1/estimates", json=request_of(model))
    started = time.process_time()
    client.post("/v1/estimates", json=request_of(model))
    assert time.process_time() - started < 0.05


class Hub(BaseHTTPRequestHandler):
    """A hub with one model, in the little of its protocol that a file needs."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        content = json.dumps(CONFIG).encode()
        if not self.path.startswith("/org/name/resolve/main/"):
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("X-Repo-Commit", "c" * 40)
        self.send_header("ETag", '"0123456789"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Nothing to standard error."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """The address of a hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_hub_models_configuration_is_read_with_its_commit(hub: str) -> None:
    found = fetch_config(HubModel(id="org/name"), seconds=5, endpoint=hub)
    assert found is not None
    assert (found.values["hidden_size"], found.revision) == (576, "c" * 40)


def test_a_model_the_hub_does_not_have_is_not_found(hub: str) -> None:
    with pytest.raises(ModelNotFound):
        fetch_config(HubModel(id="org/other"), seconds=5, endpoint=hub)


def test_a_hub_that_is_away_tells_nothing() -> None:
    model = HubModel(id="org/name")
    assert fetch_config(model, seconds=1, endpoint="http://127.0.0.1:9") is None
