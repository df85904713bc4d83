"""Every page in a real browser, in both themes: accessible and within its width.

Set `ESPALIER_TEST_SCREENSHOTS` to a directory to keep pictures of the pages; those of `docs/` are
made by `ESPALIER_TEST_SCREENSHOTS=docs/dashboard pytest tests/dashboard/test_rendered.py`.
"""

from pathlib import Path

import pytest
from fastapi import FastAPI
from playwright.sync_api import Browser, Page

from api.main import create_app
from api.settings import ApiSettings
from registry.db import SessionFactory
from registry.settings import Settings
from registry.storage import LocalStore
from tests.dashboard.conftest import keep_picture
from tests.dashboard.looking import findings
from tests.dashboard.world import furnish
from tests.factories import Holder

PICTURES = {
    "light": (
        *("overview", "jobs", "job", "job-running", "job-failed", "job-timeline", "job-logs"),
        *("job-playground", "job-recipe", "new-job", "compare", "frontier", "model"),
        *("admin-keys", "admin-webhooks", "admin-deliveries", "admin-workers", "admin-usage"),
        "admin-audit",
    ),
    "dark": (
        *("overview", "jobs", "job-running", "new-job", "compare", "frontier", "model"),
        "admin-keys",
    ),
    "light-phone": ("overview", "jobs", "job-running", "new-job", "compare", "frontier"),
    "dark-phone": (),
}
"""What `docs/dashboard.md` shows."""
PHONE = {"width": 390, "height": 844}
DESK = {"width": 1280, "height": 900}


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
