"""Every page in a real browser, in both themes: accessible, within its width, and deaf to what
users write.

Set `ESPALIER_TEST_SCREENSHOTS` to a directory to keep pictures of the pages; those of `docs/` are
made by `ESPALIER_TEST_SCREENSHOTS=docs/dashboard pytest tests/dashboard/test_rendered.py`.
"""

import itertools
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from playwright.sync_api import Browser, Page

from api.dashboard.build import build
from api.main import create_app
from api.settings import ApiSettings
from registry import events
from registry.attempts import log_name
from registry.db import SessionFactory, transaction
from registry.settings import Settings
from registry.storage import LocalStore
from registry.tables import Job
from tests.dashboard.conftest import keep_picture
from tests.dashboard.world import furnish
from tests.factories import Holder

PICTURES = {
    "light": (
        *("overview", "jobs", "job", "job-timeline", "job-logs", "job-playground", "job-recipe"),
        *("new-job", "compare", "frontier", "model", "admin-keys", "admin-webhooks"),
        *("admin-workers", "admin-usage", "admin-audit"),
    ),
    "dark": ("overview", "job-running", "new-job", "frontier"),
    "light-phone": ("overview", "job-running", "new-job"),
    "dark-phone": (),
}
"""What `docs/dashboard.md` shows."""
SERIOUS = ("serious", "critical")
PHONE = {"width": 390, "height": 844}
DESK = {"width": 1280, "height": 900}
PAYLOADS = (
    "<script>window.pwned=1</script>",
    "<img src=x onerror=window.pwned=1>",
    "\"'><svg onload=window.pwned=1>",
    "javascript:window.pwned=1",
    "{{7*7}}${window.pwned=1}",
    "</title></textarea></script><script>window.pwned=1</script>",
    "' autofocus onfocus=window.pwned=1 x='",
    "<iframe srcdoc='<script>parent.pwned=1</script>'></iframe>",
    "<a href=javascript:window.pwned=1>x</a>",
    "<div hx-get='/sign-in' hx-trigger='load' hx-on:click='window.pwned=1'>",
    "--><!--<details open ontoggle=window.pwned=1>",
    "\u2028<math><mtext></p><style><img src=x onerror=window.pwned=1></style>",
)


@pytest.fixture(scope="session")
def axe(vendored: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The accessibility rules, by the lock file."""
    (path,) = build(tmp_path_factory.mktemp("axe"), {"axe.min.js": "axe-core/axe.min.js"})
    return path.read_text()


@pytest.fixture
def app(settings: Settings, models: Path) -> FastAPI:
    """The application, allowed to look at one directory of models."""
    allowing = settings.model_copy(update={"allowed_paths": (models,)})
    return create_app(allowing, ApiSettings(poll_seconds=0.02, hub_seconds=0))


def fill_in(page: Page, models: Path) -> None:
    """Name a model, a size and a text, and wait for what that would lead to."""
    lines = (f'{{"text": "Chapter {n}. It was a dark and stormy night."}}' for n in range(400))
    (models / "novels.jsonl").write_text("\n".join(lines))
    page.get_by_label("Model", exact=True).fill(f"{models}/small")
    page.get_by_label("Target", exact=True).fill("2.5M")
    page.get_by_label("Text to train on").fill(f"{models}/novels.jsonl")
    page.get_by_test_id("look").click()
    page.get_by_text("stormy night").first.wait_for()
    page.get_by_test_id("target-slider").wait_for()


def picture(page: Page, name: str, look: str) -> None:
    if name in PICTURES[look]:
        keep_picture(page, f"{name}-{look}")


def findings(page: Page, axe: str) -> list[str]:
    """What is seriously wrong with the page as it stands."""
    page.evaluate(axe)
    result: dict[str, Any] = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{found['id']} ({found['help']}): {found['nodes'][0]['target']} of {len(found['nodes'])}"
        for found in result["violations"]
        if found["impact"] in SERIOUS
    ]


def test_every_page_is_accessible_and_fits_a_phone(
    page: Page,
    url: str,
    scheme: str,
    axe: str,
    factory: SessionFactory,
    settings: Settings,
    store: LocalStore,
    holder: Holder,
    models: Path,
    tmp_path: Path,
) -> None:
    world = furnish(factory, settings, store, holder, tmp_path)
    wrong = {}
    for name, path in world.paths.items():
        page.goto(url + path, wait_until="load")
        if name == "new-job-again":
            page.locator("#advanced").evaluate("element => element.open = true")
        if name == "new-job":
            fill_in(page, models)
        page.wait_for_timeout(120)
        found = findings(page, axe)
        picture(page, name, scheme)
        page.set_viewport_size(PHONE)  # type: ignore[arg-type]
        page.wait_for_timeout(50)
        across = page.evaluate("document.documentElement.scrollWidth")
        if across > PHONE["width"]:
            found.append(f"{across} pixels wide on a phone")
        picture(page, name, f"{scheme}-phone")
        page.set_viewport_size(DESK)  # type: ignore[arg-type]
        if found:
            wrong[name] = found
    assert wrong == {}


@pytest.mark.parametrize("scheme", ["light"], indirect=True)
def test_nothing_that_users_workers_or_logs_write_is_executed(
    page: Page,
    url: str,
    factory: SessionFactory,
    settings: Settings,
    store: LocalStore,
    holder: Holder,
    tmp_path: Path,
) -> None:
    corpus = itertools.cycle(PAYLOADS)
    world = furnish(
        factory, settings, store, holder, tmp_path, say=lambda text: f"{text[:12]} {next(corpus)}"
    )
    for path in world.paths.values():
        page.goto(url + path, wait_until="load")
        page.wait_for_timeout(120)
        assert page.evaluate("window.pwned") is None, path
    page.goto(f"{url}/jobs/{world.running}/logs")
    (log,) = settings.data_dir.glob(log_name(world.running, 0).rpartition("/")[0] + "/*")
    with log.open("a") as file:
        file.write("\n".join(PAYLOADS) + "\nthe end of the log\n")
    page.get_by_text("the end of the log").wait_for()
    page.goto(f"{url}/jobs/{world.running}")
    with transaction(factory) as session:
        job = session.get_one(Job, world.running)
        for payload in PAYLOADS:
            events.append(session, job, "warning", {"message": payload, "code": payload})
    page.get_by_text(PAYLOADS[-2]).first.wait_for()
    assert page.evaluate("window.pwned") is None


@pytest.mark.parametrize("scheme", ["light"], indirect=True)
def test_a_keyboard_alone_reaches_the_work(page: Page, url: str) -> None:
    page.goto(f"{url}/jobs/new")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "f-model"


def test_pages_work_without_javascript(
    chromium: Browser, vendored: None, url: str, holder: Holder
) -> None:
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{url}/jobs/new")
    page.get_by_label("API key").fill(holder.secret)
    page.get_by_role("button", name="Sign in").click()
    page.get_by_label("Model", exact=True).fill("org/tiny")
    page.get_by_label("Target", exact=True).fill("30%")
    page.get_by_label("Text to train on").fill("org/text")
    page.get_by_role("button", name="Create the job").click()
    page.get_by_test_id("job-name").wait_for()
    page.get_by_role("button", name="Pause").click()
    assert page.get_by_test_id("status").inner_text() == "paused"
    context.close()
