"""Nothing that users, workers, runs or logs write is executed, wherever it is shown."""

import itertools
from urllib.parse import quote

import pytest
from fastapi import FastAPI
from playwright.sync_api import Page

from registry import events
from registry.attempts import log_name
from registry.db import SessionFactory, transaction
from registry.settings import Settings
from registry.storage import LocalStore
from registry.tables import Base, Job, JobEvent
from tests.dashboard.hostile import NOT_FREE, PAYLOADS, Corpus, hostile, hostile_request, take_over
from tests.dashboard.world import World, furnish
from tests.factories import Holder

QUERIES = (
    "/jobs?q={}",
    "/jobs?show=failed&q={}",
    "/jobs/new?data={}",
    "/frontier?model={}",
    "/models?checkpoint={}",
    "/compare?job={}",
    "/jobs/{}",
    "/models/{}",
    "/admin/webhooks/{}",
    "/{}",
)
"""Where what stands in the address is shown again."""
NOT_SHOWN = {"credentials", "idempotency_keys", "job_files", "outbox"}
"""Tables of which no page shows anything."""


@pytest.fixture
def world(
    factory: SessionFactory,
    settings: Settings,
    store: LocalStore,
    holder: Holder,
    app: FastAPI,
    tmp_path_factory: pytest.TempPathFactory,
) -> World:
    """A tenant with some of everything, all of it hostile."""
    world = furnish(factory, settings, store, holder, tmp_path_factory.mktemp("made"))
    with transaction(factory) as session:
        take_over(session, app.openapi())
    return world


def assert_nothing_ran(page: Page, what: str) -> None:
    page.wait_for_timeout(100)
    assert page.evaluate("window.pwned") is None, what


@pytest.mark.parametrize("scheme", ["light"], indirect=True)
def test_no_page_runs_what_the_database_holds(page: Page, url: str, world: World) -> None:
    for path in world.paths.values():
        page.goto(url + path, wait_until="load")
        assert "pwned=1" in page.content() or path in ("/jobs/new", "/admin/usage"), path
        assert_nothing_ran(page, path)


@pytest.mark.parametrize("scheme", ["light"], indirect=True)
def test_no_live_page_runs_what_comes_later(
    page: Page, url: str, world: World, factory: SessionFactory, settings: Settings
) -> None:
    page.goto(f"{url}/jobs/{world.running}/logs")
    (log,) = settings.data_dir.glob(log_name(world.running, 0).rpartition("/")[0] + "/*")
    with log.open("a") as file:
        file.write("\n".join(PAYLOADS) + "\nthe end of the log\n")
    page.get_by_text("the end of the log").wait_for()
    assert_nothing_ran(page, "log")

    page.goto(f"{url}/jobs/{world.running}")
    corpus = Corpus()
    with transaction(factory) as session:
        job = session.get_one(Job, world.running)
        said = session.query(JobEvent).filter(JobEvent.job_id == job.id).all()
        for event in said:
            events.append(session, job, event.type, hostile(event.data, corpus))
        for payload in PAYLOADS:
            events.append(session, job, "warning", {"message": payload, "code": payload})
    page.get_by_text(PAYLOADS[-2]).first.wait_for()
    assert_nothing_ran(page, "events")


@pytest.mark.parametrize("scheme", ["light"], indirect=True)
def test_no_page_runs_what_its_own_address_or_form_says(
    page: Page, url: str, complaints: list[str]
) -> None:
    for place, payload in zip(QUERIES, itertools.cycle(PAYLOADS), strict=False):
        page.goto(url + place.format(quote(payload, safe="")), wait_until="load")
        assert_nothing_ran(page, place)
    page.goto(f"{url}/jobs/new")
    page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    boxes = page.locator("#newjob :is(input:not([type]), textarea)").all()
    for box, payload in zip(boxes, itertools.cycle(PAYLOADS), strict=False):
        box.fill(payload)
    page.get_by_test_id("create").click()
    page.get_by_test_id("form-errors").wait_for()
    assert_nothing_ran(page, "the refused form")
    # What is not there, or is refused, is answered with a status that the console repeats.
    complaints[:] = [one for one in complaints if "responded with a status of 4" not in one]


def test_every_table_that_pages_show_is_hostile(factory: SessionFactory, world: World) -> None:
    with factory() as session:
        empty = {
            table.name
            for table in Base.metadata.sorted_tables
            if session.execute(table.select().limit(1)).first() is None
        }
    assert empty <= NOT_SHOWN
    assert set(NOT_FREE) - {"*"} <= set(Base.metadata.tables)


def test_every_free_text_of_a_request_is_hostile(app: FastAPI) -> None:
    request = hostile_request(app.openapi(), Corpus())
    written = str(request)
    for field in ("name", "metadata", "license", "documents", "split", "path", "gguf_file", "url"):
        assert f"'{field}'" in written, field
