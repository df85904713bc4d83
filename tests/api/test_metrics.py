"""What Prometheus is told, and that alerts and charts ask for nothing else."""

import json
import re
from pathlib import Path

import pytest
import yaml
from fastapi import FastAPI
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from registry.db import SessionFactory, transaction
from tests.factories import Holder, make_job, start_job

ROOT = Path(__file__).parents[2]


def samples(client: TestClient) -> dict[tuple[str, ...], float]:
    """Values by name and labels."""
    answer = client.get("/metrics")
    assert answer.status_code == 200
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_the_state_of_the_service_is_read_from_the_database(
    anonymous: TestClient, holder: Holder, factory: SessionFactory
) -> None:
    with transaction(factory) as session:
        make_job(session, holder.tenant_id)
        start_job(session, make_job(session, holder.tenant_id))
    found = samples(anonymous)
    assert found["espalier_database_up",] == 1
    assert found["espalier_jobs", "queued"] == 1
    assert found["espalier_jobs", "running"] == 1
    assert found["espalier_jobs", "failed"] == 0
    assert found["espalier_outbox_unsent",] == 2
    assert found["espalier_leases_overdue",] == 1
    assert found["espalier_queue_oldest_age_seconds",] > 0
    assert found["espalier_submit_to_start_seconds", "0.95"] >= 0
    assert found["espalier_webhook_deliveries", "failed"] == 0


def test_requests_are_counted_by_the_template_of_their_route(client: TestClient) -> None:
    for job_id in ("job_1", "job_2"):
        client.get(f"/v1/jobs/{job_id}")
    client.get("/no/such/page")
    found = samples(client)
    counted = {key: n for key, n in found.items() if key[0] == "espalier_http_requests_total"}
    assert counted["espalier_http_requests_total", "GET", "/v1/jobs/{job_id}", "404"] == 2
    assert counted["espalier_http_requests_total", "GET", "unmatched", "404"] == 1
    assert not any("job_1" in label for key in found for label in key)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_without_its_database_it_says_so(
    app: FastAPI, anonymous: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    with app.state.engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE metric_points")
        connection.exec_driver_sql("ALTER TABLE blobs RENAME TO gone")
    assert samples(anonymous)["espalier_database_up",] == 0


def test_alerts_and_charts_ask_for_metrics_that_exist(anonymous: TestClient) -> None:
    anonymous.get("/healthz")
    known = {key[0] for key in samples(anonymous)} | {"espalier_attempts_total"}
    alerts = yaml.safe_load((ROOT / "deploy/alerts.yml").read_text())
    charts = json.loads((ROOT / "deploy/grafana.json").read_text())
    asked = [rule["expr"] for group in alerts["groups"] for rule in group["rules"]]
    asked += [target["expr"] for panel in charts["panels"] for target in panel["targets"]]
    names = {name for text in asked for name in re.findall(r"espalier_\w+", text)}
    assert names
    assert names <= known
