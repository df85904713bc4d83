"""Whatever goes wrong is one problem document with the same members."""

import sqlite3
from contextlib import closing

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import Engine, event

from api.main import create_app
from api.schemas.base import ProblemRead
from api.settings import ApiSettings
from registry.db import SessionFactory, transaction
from registry.settings import Settings
from tests.factories import SMALL_REQUEST, Holder, make_holder

# No database has a say in these.
pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
JSON = {"Content-Type": "application/json"}


def check_problem(response, status: int, code: str) -> ProblemRead:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = ProblemRead.model_validate(response.json())
    assert (problem.status, problem.code) == (status, code)
    assert problem.request_id == response.headers["x-request-id"]
    return problem


@pytest.mark.parametrize("path", ["/nowhere", "/v1/nowhere", "/v1/jobs/", "/static/none.css"])
def test_an_unknown_path_is_a_404_problem(client: TestClient, path: str) -> None:
    check_problem(client.get(path), 404, "not_found")


def test_a_method_not_offered_is_a_405_problem_with_allow(client: TestClient) -> None:
    response = client.put("/v1/jobs")
    check_problem(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "GET, POST"


def test_a_body_over_the_limit_is_a_413_problem(settings: Settings, holder: Holder) -> None:
    app = create_app(settings, ApiSettings(max_body_bytes=1000))
    with TestClient(app, headers=holder.headers) as client:
        response = client.post("/v1/jobs", content=b'"' + b"x" * 2000 + b'"', headers=JSON)
    check_problem(response, 413, "body_too_large")


def test_a_body_that_is_not_json_is_a_400_problem(client: TestClient) -> None:
    response = client.post("/v1/jobs", content=b"{", headers=JSON)
    check_problem(response, 400, "malformed_json")


@pytest.mark.parametrize("body", [b'{"name": "\\ud800"}', b'{"name": "\xff"}'])
def test_json_that_only_python_accepts_is_refused(client: TestClient, body: bytes) -> None:
    check_problem(client.post("/v1/jobs", content=body, headers=JSON), 400, "malformed_json")


def test_a_body_of_another_media_type_is_a_415_problem(client: TestClient) -> None:
    response = client.post("/v1/jobs", data={"model": "a"})
    check_problem(response, 415, "unsupported_media_type")


def test_an_invalid_body_names_every_field_at_fault(client: TestClient) -> None:
    body = {**SMALL_REQUEST, "target": "many", "recovry": {}}
    problem = check_problem(client.post("/v1/jobs", json=body), 422, "validation_error")
    assert {error["param"] for error in problem.errors} >= {"target", "recovry"}


def test_text_with_a_nul_character_is_refused(client: TestClient) -> None:
    body = {**SMALL_REQUEST, "name": "a\0b"}
    check_problem(client.post("/v1/jobs", json=body), 422, "validation_error")


@pytest.mark.parametrize(
    ("path", "param"),
    [
        ("/v1/jobs?limit=1&limit=2", "limit"),
        ("/v1/jobs?metadata[team]=a&metadata[team]=b", "metadata[team]"),
    ],
)
def test_a_parameter_said_twice_is_refused_rather_than_one_taken(
    client: TestClient, path: str, param: str
) -> None:
    answer = client.get(path)
    assert (answer.status_code, answer.json()["param"]) == (422, param)
    assert "only once" in answer.json()["detail"]


def test_a_list_may_be_said_item_by_item(client: TestClient) -> None:
    assert client.get("/v1/jobs?status=queued&status=running").status_code == 200


def test_an_unknown_query_parameter_is_refused_by_name(client: TestClient) -> None:
    problem = check_problem(client.get("/v1/jobs?stauts=failed"), 422, "validation_error")
    assert problem.param == "stauts"


@pytest.mark.parametrize("path", ["/v1/jobs/a%00b", "/v1/checkpoints/%00", "/v1/jobs?model=%00"])
def test_a_nul_in_the_address_is_no_server_error(client: TestClient, path: str) -> None:
    assert client.get(path).status_code in (404, 422)


def test_no_key_is_a_401_problem_with_a_challenge(anonymous: TestClient) -> None:
    response = anonymous.get("/v1/jobs")
    check_problem(response, 401, "missing_key")
    assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("header", ["Bearer pk_000000000000_" + "0" * 48, "Bearer x", "Basic eA=="])
def test_a_wrong_key_is_a_401_problem(anonymous: TestClient, header: str) -> None:
    response = anonymous.get("/v1/jobs", headers={"Authorization": header})
    check_problem(response, 401, "invalid_key")


def test_a_key_without_the_scope_is_a_403_problem(
    anonymous: TestClient, factory: SessionFactory
) -> None:
    with transaction(factory) as session:
        reader = make_holder(session, scopes=("jobs:read",))
    assert anonymous.get("/v1/jobs", headers=reader.headers).status_code == 200
    response = anonymous.post("/v1/jobs", headers=reader.headers, json=SMALL_REQUEST)
    check_problem(response, 403, "insufficient_scope")


def test_a_database_that_is_away_is_a_503_problem(settings: Settings, holder: Holder) -> None:
    away = settings.model_copy(
        update={"database_url": "postgresql+psycopg://nobody@127.0.0.1:1/none"}
    )
    with TestClient(create_app(away), headers=holder.headers) as client:
        response = client.get("/v1/jobs")
        assert client.get("/healthz").status_code == 200
    check_problem(response, 503, "database_unavailable")
    assert int(response.headers["retry-after"]) > 0


def test_a_database_that_is_locked_for_too_long_is_a_503_problem(
    app: FastAPI, client: TestClient
) -> None:
    """The writer waits its turn first, here for 0.1 s only."""
    engine: Engine = app.state.engine
    engine.dispose()
    event.listen(engine, "connect", lambda found, _: found.execute("PRAGMA busy_timeout=100"))
    with closing(sqlite3.connect(str(engine.url.database), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        response = client.post("/v1/jobs", json=SMALL_REQUEST)
        other.execute("ROLLBACK")
    check_problem(response, 503, "database_unavailable")
    assert int(response.headers["retry-after"]) > 0
    assert client.post("/v1/jobs", json=SMALL_REQUEST).status_code == 201


def test_a_full_disk_of_the_database_is_a_507_problem_and_nothing_is_written(
    app: FastAPI, client: TestClient
) -> None:
    engine: Engine = app.state.engine
    with engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
    engine.dispose()
    limit = f"PRAGMA max_page_count={pages + 8}"
    event.listen(engine, "connect", lambda found, _: found.execute(limit))
    large = {
        **SMALL_REQUEST,
        "name": "large",
        "metadata": {f"key{n}": "x" * 500 for n in range(16)},
    }
    answers = [client.post("/v1/jobs", json=large) for _ in range(20)]
    refused = [answer for answer in answers if answer.status_code != 201]
    assert refused
    for answer in refused:
        check_problem(answer, 507, "storage_full")
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA integrity_check").scalar_one() == "ok"
        jobs = connection.exec_driver_sql("SELECT count(*) FROM jobs").scalar_one()
        hints = connection.exec_driver_sql("SELECT count(*) FROM outbox").scalar_one()
    assert jobs == hints == len(answers) - len(refused)


def test_an_unexpected_error_is_a_500_problem_without_details(
    client: TestClient, engine: Engine
) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE jobs RENAME TO hidden")
    response = client.get("/v1/jobs")
    assert response.status_code in (500, 503)
    assert "hidden" not in response.text
    assert "Traceback" not in response.text


def test_a_browser_gets_a_page(anonymous: TestClient) -> None:
    response = anonymous.get("/nowhere", headers={"Accept": "text/html,*/*"})
    assert response.status_code == 404
    assert response.headers["content-type"].startswith("text/html")


def test_a_request_id_that_was_sent_is_used(anonymous: TestClient) -> None:
    response = anonymous.get("/nowhere", headers={"X-Request-Id": "mine-1"})
    assert response.json()["request_id"] == response.headers["x-request-id"] == "mine-1"
