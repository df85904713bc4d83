"""The form that makes a job, as a browser without JavaScript sends it."""

import html
import re
from pathlib import Path
from typing import Any, get_args

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from api.dashboard.form_fields import METHODS
from api.dashboard.job_form import fill, owner_of, read_form, request_of
from api.main import create_app
from api.schemas.jobs import JobCreate
from api.settings import ApiSettings
from registry.settings import Settings
from tests.dashboard.conftest import form_token


@pytest.fixture
def app(settings: Settings, models: Path) -> FastAPI:
    allowing = settings.model_copy(update={"allowed_paths": (models,)})
    return create_app(allowing, ApiSettings(poll_seconds=0.02, hub_seconds=0))


def send(browser: TestClient, path: str = "/jobs", **fields: Any) -> Any:
    token = form_token(browser.get("/jobs/new").text)
    headers = {"Accept": "text/html"}
    return browser.post(path, data={"form_token": token, **fields}, headers=headers)


def whole(models: Path, **fields: Any) -> dict[str, Any]:
    return {"model": f"{models}/small", "target": "30%", "data": f"{models}/a.txt", **fields}


def test_three_fields_make_a_job(browser: TestClient, client: TestClient, models: Path) -> None:
    response = send(browser, **whole(models))
    assert response.status_code == 303
    job = client.get(f"/v1{response.headers['location']}").json()
    assert job["spec"] == whole(models)
    assert job["estimate"]["params"] < 3_300_000


def test_a_form_sent_twice_makes_one_job(browser: TestClient, models: Path) -> None:
    places = [
        send(browser, **whole(models, once="0" * 32, name=name)).headers["location"]
        for name in ("first", "first", "second")
    ]
    assert places[0] == places[1] != places[2]


def test_a_refused_form_says_what_the_api_says(
    browser: TestClient, client: TestClient, models: Path
) -> None:
    fields = whole(models, target="huge", **{"output.dtype": "int3", "priority": "many"})
    request = request_of(read_form(list(fields.items())))
    said = client.post("/v1/jobs", json=request).json()["errors"]
    response = send(browser, **fields)
    assert response.status_code == 422
    for error in said:
        shown = error["message"].replace("'", "&#39;").replace(">", "&gt;")
        assert shown in response.text, error
    assert 'value="huge"' in response.text
    assert 'aria-describedby="f-target-hint f-target-wrong" aria-invalid="true"' in response.text


def test_an_unreachable_target_is_refused_with_the_floor(browser: TestClient, models: Path) -> None:
    page = send(browser, **whole(models, target="1K"))
    assert page.status_code == 422
    assert "the constraints leave at least" in page.text


def test_the_forecast_needs_no_data_and_no_script(browser: TestClient, models: Path) -> None:
    fields = {"model": f"{models}/small", "target": "2.5M"}
    page = send(browser, "/jobs/new/estimate", **fields).text
    assert "<!doctype html>" in page
    assert f'value="{models}/small"' in page
    part = browser.post(
        "/jobs/new/estimate",
        data={**fields, "form_token": form_token(page)},
        headers={"HX-Request": "true"},
    ).text
    assert "<html" not in part
    found = re.search(r'data-params="(\d+)" data-floor="(\d+)"[^>]*data-result="(\d+)"', part)
    assert found
    base, floor, result = map(int, found.groups())
    assert floor < result == 2_500_000 < base


def test_what_is_written_can_be_sent_from_elsewhere(browser: TestClient, models: Path) -> None:
    page = html.unescape(send(browser, "/jobs/new/estimate", **whole(models)).text)
    for text in ("curl http://", "from espalier import Client", "espalier submit"):
        assert text in page
    assert f'"model": "{models}/small"' in page
    half = send(browser, "/jobs/new/estimate", **whole(models, data="")).text
    assert "curl http://" not in half


def test_the_text_is_looked_at_before_there_is_a_job(browser: TestClient, models: Path) -> None:
    (models / "a.txt").write_text("One gardener.")
    page = send(browser, "/jobs/new/preview", **whole(models)).text
    assert "One gardener." in page
    assert 'value="30%"' in page
    pasted = {"data_text": "Pasted one.\n\nPasted two."}
    assert "Pasted two." in send(browser, "/jobs/new/preview", **pasted).text
    forbidden = send(browser, "/jobs/new/preview", data="/etc/passwd").text
    assert "not under an allowed root" in forbidden.replace("&#39;", "'")


def test_a_file_is_sent_and_named_in_the_form(browser: TestClient, client: TestClient) -> None:
    token = {"form_token": form_token(browser.get("/jobs/new").text)}
    text = {"file": ("a.txt", b"One gardener.\n" * 100_000)}
    response = browser.post("/files", data=token, files=text)
    place = response.headers["location"]
    assert re.fullmatch(r"/jobs/new\?data=file_[0-9a-f]{32}", place)
    assert place.partition("=")[2] in browser.get(place).text
    (file,) = client.get("/v1/files").json()["data"]
    assert (file["name"], file["status"], file["size"]) == ("a.txt", "ready", 1_400_000)
    for wrong in ("a.exe", "../../a"):
        assert browser.post("/files", data=token, files={"file": (wrong, b"")}).status_code == 422
    forged = {"form_token": "0" * 64}
    assert browser.post("/files", data=forged, files=text).status_code == 403


def test_an_earlier_job_fills_the_form(browser: TestClient, models: Path) -> None:
    fields = whole(models, name="again", **{"schedule.num_increments": "7", "axes": ["mlp_block"]})
    fields["importance.kind"] = "block_influence"
    job = send(browser, **fields, compensation="none").headers["location"].removeprefix("/jobs/")
    page = browser.get(f"/jobs/new?like={job}").text
    for text in ('value="again"', 'value="7"', 'value="mlp_block" checked', 'value="30%"'):
        assert text in page


def test_a_form_of_another_site_makes_nothing(browser: TestClient, models: Path) -> None:
    data = whole(models, form_token="0" * 64)
    assert browser.post("/jobs", data=data).status_code == 403
    assert "No jobs yet" in browser.get("/jobs").text


@pytest.mark.parametrize(
    "spec",
    [
        {"model": "org/m", "target": "110M", "data": "org/d:c"},
        {"model": {"source": "hub", "id": "org/m"}, "target": "5M", "data": {"train": "org/d"}},
        {
            "model": "org/m",
            "target": ["9M", "8M"],
            "data": "org/d",
            "seed": 3,
            "metadata": {"a": "b"},
        },
        {"model": "org/m", "target": "9M", "data": {"train": "org/d", "held_out_fraction": 0.1}},
    ],
)
def test_a_request_survives_the_form(spec: dict[str, Any]) -> None:
    assert request_of(fill(spec)) == spec


def test_every_method_of_the_recipe_is_offered() -> None:
    assert set(METHODS) == set(get_args(JobCreate.model_fields["method"].annotation))


def test_several_sources_become_domains() -> None:
    lines = "code = /a/code.jsonl\norg/web:en"
    request = request_of(read_form([("data", lines), ("data_text", "One.\n\nTwo.")]))
    assert [(d["name"], d["source"]) for d in request["data"]["train"]] == [
        ("code", "/a/code.jsonl"),
        ("domain-2", "org/web:en"),
        ("pasted", {"kind": "inline", "documents": ["One.", "Two."]}),
    ]


def test_errors_find_the_field_that_they_are_about() -> None:
    assert owner_of("data.train.0.source.hub.id") == "data"
    assert owner_of("recovery.learning_rate.peak") == "recovery.learning_rate.peak"
    assert owner_of("metadata.a") == ""
