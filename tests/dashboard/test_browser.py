"""A real browser: sign in, watch a job change without a reload, nothing refused by the policy."""

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from registry import events, jobs
from registry.db import SessionFactory, transaction
from registry.status import JobStatus
from registry.storage import LocalStore
from registry.tables import Job
from tests.factories import (
    Holder,
    cut,
    make_checkpoint,
    make_evaluation,
    make_job,
    make_steps,
    start_job,
    succeed,
)

PAUSE_MS = 15_000


def finish_increment(
    session: jobs.Session, store: LocalStore, job: Job, directory: Path, increment: int
) -> None:
    cut(session, job, increment)
    make_steps(session, job, first=job.step + 1, count=24)
    value = 24.31 + 2.1 * increment
    make_evaluation(
        session, job, increment=increment, stage="recovered", value=value, tokens=job.tokens_seen
    )
    make_checkpoint(session, store, job, directory, increment=increment)


def test_a_job_is_watched_without_a_reload(
    page: Page,
    url: str,
    scheme: str,
    factory: SessionFactory,
    holder: Holder,
    store: LocalStore,
    tmp_path: Path,
) -> None:
    with transaction(factory) as session:
        job_id = make_job(session, holder.tenant_id, name="smollm2-110m").id
    page.goto(f"{url}/jobs/{job_id}")
    page.evaluate("window.sameDocument = true")
    expect(page.get_by_test_id("status")).to_have_text("queued")

    with transaction(factory) as session:
        start_job(session, session.get_one(Job, job_id))
    expect(page.get_by_test_id("status")).to_contain_text("running", timeout=PAUSE_MS)
    with transaction(factory) as session:
        job = session.get_one(Job, job_id)
        for increment in (1, 2):
            finish_increment(session, store, job, tmp_path, increment)
    expect(page.get_by_test_id("increment")).to_have_text("2 of 3", timeout=PAUSE_MS)
    expect(page.get_by_test_id("perplexity")).to_have_text("28.51")
    expect(page.get_by_test_id("plot-loss").locator("canvas")).to_be_visible(timeout=PAUSE_MS)
    expect(page.get_by_test_id("widths").locator("canvas")).to_have_count(2)

    page.get_by_test_id("checkpoints").get_by_text("2 files").first.click()
    with transaction(factory) as session:
        job = session.get_one(Job, job_id)
        finish_increment(session, store, job, tmp_path, 3)
        events.append(session, job, "warning", {"message": "<img src=x onerror=alert(1)>"})
        succeed(session, job)
    expect(page.get_by_test_id("status")).to_have_text("succeeded", timeout=PAUSE_MS)
    expect(page.get_by_test_id("events")).to_contain_text("<img src=x onerror=alert(1)>")
    expect(page.locator("a:visible", has_text="config.json")).to_have_count(1)
    assert page.evaluate("window.sameDocument"), "the page was loaded again"

    page.goto(f"{url}/jobs")
    expect(page.get_by_test_id("jobs")).to_contain_text("succeeded")


@pytest.mark.parametrize("scheme", ["light"], indirect=True)
def test_a_job_is_paused_and_resumed_and_its_checkpoint_downloaded(
    page: Page, url: str, factory: SessionFactory, running_job_id: str
) -> None:
    page.goto(f"{url}/jobs/{running_job_id}")
    page.get_by_text("2 files").click()
    with page.expect_download() as download:
        page.get_by_role("link", name="config.json").click()
    assert Path(download.value.path()).read_bytes() == b"{}"
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_test_id("status")).to_contain_text("pausing")
    with transaction(factory) as session:
        jobs.transition(session, jobs.lock(session, running_job_id), JobStatus.PAUSED)
    page.get_by_role("button", name="Resume").click(timeout=PAUSE_MS)
    expect(page.get_by_test_id("status")).to_have_text("queued")


@pytest.mark.parametrize("scheme", ["light"], indirect=True)
def test_the_list_changes_without_a_reload(
    page: Page, factory: SessionFactory, holder: Holder
) -> None:
    with transaction(factory) as session:
        make_job(session, holder.tenant_id, name="appears by itself")
    expect(page.get_by_role("link", name="appears by itself")).to_be_visible(timeout=PAUSE_MS)
