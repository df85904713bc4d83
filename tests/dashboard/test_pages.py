"""The pages as a browser without JavaScript gets them."""

import re

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from registry import checkpoints, jobs
from registry.db import SessionFactory, transaction
from tests.dashboard.conftest import form_token
from tests.factories import Holder, make_job


def test_the_session_cookie_is_out_of_reach_of_scripts_and_other_sites(
    anonymous: TestClient, holder: Holder
) -> None:
    token = form_token(anonymous.get("/sign-in").text)
    response = anonymous.post("/sign-in", data={"api_key": holder.secret, "form_token": token})
    cookie = response.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert holder.secret not in cookie


def test_without_a_session_every_page_leads_to_the_form_and_back(
    anonymous: TestClient, job_id: str
) -> None:
    for path in ("/", "/jobs", f"/jobs/{job_id}"):
        response = anonymous.get(path)
        assert (response.status_code, response.headers["location"]) == (
            303,
            f"/sign-in?next={path}",
        )
    live = anonymous.get(f"/jobs/{job_id}/live", headers={"HX-Request": "true"})
    assert (live.status_code, live.headers["hx-redirect"]) == (401, "/sign-in")


@pytest.mark.parametrize("target", ["//evil.test", "https://evil.test", "/\\evil.test", "jobs"])
def test_signing_in_never_leads_to_another_host(
    anonymous: TestClient, holder: Holder, target: str
) -> None:
    token = form_token(anonymous.get("/sign-in", params={"next": target}).text)
    data = {"api_key": holder.secret, "form_token": token, "next": target}
    assert anonymous.post("/sign-in", data=data).headers["location"] == "/"


def test_a_wrong_key_shows_the_form_again(anonymous: TestClient) -> None:
    token = form_token(anonymous.get("/sign-in").text)
    response = anonymous.post("/sign-in", data={"api_key": "pk_wrong", "form_token": token})
    assert response.status_code == 401
    assert "not a valid API key" in response.text


@pytest.mark.parametrize("token", ["", "0" * 64])
def test_a_form_of_another_page_is_refused(
    browser: TestClient, holder: Holder, job_id: str, token: str
) -> None:
    for path in ("/sign-in", "/sign-out", f"/jobs/{job_id}/cancel"):
        data = {"api_key": holder.secret, "form_token": token}
        assert browser.post(path, data=data).status_code in (403, 422), path
    assert "queued" in browser.get(f"/jobs/{job_id}").text


def test_a_forged_session_is_no_session(
    app: FastAPI, anonymous: TestClient, holder: Holder
) -> None:
    good = app.state.signer.issue(holder.key_id)
    for cookie in (good[:-1] + "0" * (good[-1] != "0") + "1" * (good[-1] == "0"), "a.b.c", "", "é"):
        anonymous.cookies.set("espalier_session", cookie.encode("ascii", "ignore").decode())
        assert anonymous.get("/jobs").status_code == 303


def test_signing_out_ends_the_session(browser: TestClient) -> None:
    page = browser.get("/jobs")
    assert page.status_code == 200
    browser.post("/sign-out", data={"form_token": form_token(page.text)})
    assert browser.get("/jobs").status_code == 303


def test_the_job_page_shows_the_numbers(browser: TestClient, running_job_id: str) -> None:
    page = browser.get(f"/jobs/{running_job_id}").text
    for text in ("134,515,008", "110,000,000", "24.31", "checkpoint.created", "model.safetensors"):
        assert text in page
    assert page.count("<svg") >= 4


def test_the_buttons_steer_the_job(browser: TestClient, job_id: str) -> None:
    token = form_token(browser.get(f"/jobs/{job_id}").text)
    response = browser.post(f"/jobs/{job_id}/pause", data={"form_token": token})
    assert (response.status_code, response.headers["location"]) == (303, f"/jobs/{job_id}")
    page = browser.get(f"/jobs/{job_id}").text
    assert 'data-testid="resume"' in page


def test_the_chosen_jobs_that_have_not_ended_are_cancelled_together(
    browser: TestClient, factory: SessionFactory, holder: Holder, job_id: str
) -> None:
    with transaction(factory) as session:
        over = make_job(session, holder.tenant_id, name="over")
        jobs.transition(session, over, jobs.JobStatus.FAILED, reason="internal")
        ended, left = over.id, make_job(session, holder.tenant_id, name="left alone").id
    token = form_token(browser.get("/jobs").text)
    for wrong, status in (({"form_token": "0"}, 403), ({"form_token": token, "job": "job_0"}, 404)):
        assert browser.post("/jobs/cancel", data=wrong).status_code == status
    chosen = {"form_token": token, "job": [job_id, ended]}
    assert browser.post("/jobs/cancel", data=chosen).headers["location"] == "/jobs"
    shown = {name: browser.get(f"/jobs/{name}").text for name in (job_id, ended, left)}
    for name, status in ((job_id, "cancelled"), (ended, "failed"), (left, "queued")):
        assert f'<span class="status {status}"' in shown[name]


def test_who_may_only_read_is_shown_no_button_that_changes_a_job(
    anonymous: TestClient, client: TestClient, job_id: str
) -> None:
    key = client.post("/v1/api-keys", json={"scopes": ["jobs:read"]}).json()["secret"]
    token = form_token(anonymous.get("/sign-in").text)
    anonymous.post("/sign-in", data={"api_key": key, "form_token": token})
    for path in ("/jobs", f"/jobs/{job_id}"):
        page = anonymous.get(path).text
        assert 'data-testid="job' in page
        assert not re.search('data-testid="(cancel|pause|delete|cancel-chosen)"', page)


def test_download_links_work_with_the_session(browser: TestClient, running_job_id: str) -> None:
    page = browser.get(f"/jobs/{running_job_id}").text
    link = re.search(r'href="(/v1/checkpoints/[^"]+/files/config.json)"', page)
    assert link
    assert browser.get(link[1]).content == b"{}"


def test_a_checkpoint_that_was_not_kept_offers_no_files(
    browser: TestClient, running_job_id: str, factory: SessionFactory
) -> None:
    with transaction(factory) as session:
        [checkpoint] = checkpoints.list_for_job(session, running_job_id)
        checkpoint.status = "deleted"
    page = browser.get(f"/jobs/{running_job_id}").text
    assert "not kept" in page
    assert f"files-{checkpoint.id}" not in page


def test_a_foreign_job_is_a_404_page(
    browser: TestClient, factory: SessionFactory, stranger: Holder
) -> None:
    with transaction(factory) as session:
        theirs = make_job(session, stranger.tenant_id, name="secret plan").id
    response = browser.get(f"/jobs/{theirs}", headers={"Accept": "text/html"})
    assert response.status_code == 404
    assert "secret plan" not in response.text + browser.get("/jobs").text


def test_what_users_write_is_escaped(
    browser: TestClient, factory: SessionFactory, holder: Holder
) -> None:
    hostile = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
    with transaction(factory) as session:
        job = make_job(session, holder.tenant_id, name=hostile, metadata={"a": hostile})
        jobs.transition(session, job, jobs.JobStatus.FAILED, reason=hostile)
        job.error = {"code": "internal", "message": hostile, "hint": hostile, "param": hostile}
        hostile_id = job.id
    for path in ("/jobs", f"/jobs/{hostile_id}", f"/jobs/{hostile_id}/live"):
        page = browser.get(path).text
        assert "<script>alert" not in page
        assert "<img" not in page.replace('<img src="/static', "")


def test_no_page_needs_inline_code_or_another_host(
    browser: TestClient, running_job_id: str
) -> None:
    for path in ("/sign-in", "/jobs", f"/jobs/{running_job_id}"):
        response = browser.get(path)
        assert "default-src 'self'" in response.headers["content-security-policy"]
        assert not re.search(r"<style|<script>|\sstyle=|\son[a-z]+=", response.text)
        assert not re.search(r'(src|href)="(https?:)?//', response.text)


def test_the_list_pages_and_filters(
    browser: TestClient, factory: SessionFactory, holder: Holder
) -> None:
    with transaction(factory) as session:
        for number in range(60):
            make_job(session, holder.tenant_id, name=f"job number {number:02}")
    first = browser.get("/jobs").text
    assert first.count(">job number") == 50
    older = re.search(r'href="(/jobs\?show=all&amp;after=[^"]+)"', first)
    assert older
    assert browser.get(older[1].replace("&amp;", "&")).text.count(">job number") == 10
    assert browser.get("/jobs?show=failed").text.count(">job number") == 0
    assert browser.get("/jobs?q=NUMBER 07").text.count(">job number") == 1
    assert browser.get("/jobs?show=nothing").status_code == 422


def test_the_first_page_shows_what_runs_and_what_happened(
    browser: TestClient, running_job_id: str
) -> None:
    page = browser.get("/").text
    assert f'id="run-{running_job_id}"' in page
    assert "checkpoint.created" in page
    assert "No worker is alive" in page


def test_a_form_that_changes_something_is_in_the_audit_log(
    browser: TestClient, client: TestClient, job_id: str
) -> None:
    token = form_token(browser.get(f"/jobs/{job_id}").text)
    browser.post(f"/jobs/{job_id}/cancel", data={"form_token": token})
    entry = client.get("/v1/audit").json()["data"][0]
    assert (entry["action"], entry["path"]) == (
        "POST /jobs/{job_id}/{action}",
        f"/jobs/{job_id}/cancel",
    )
