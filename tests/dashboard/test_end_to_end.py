"""The whole way in a browser, on real processes: from the form to a verified download."""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.dashboard.conftest import listen_for_complaints
from tests.e2e.stack import Up, tiny_request, wait_until, write_model_and_text

PATIENCE_MS = 120_000
LONG = 90_000
"""Tokens of a job that lasts long enough to be paused, and killed, in the middle."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_model_and_text(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def up(
    no_litter: None, tmp_path_factory: pytest.TempPathFactory, inputs: tuple[Path, Path]
) -> Iterator[Up]:
    """`espalier up`, as a user starts it."""
    up = Up(tmp_path_factory.mktemp("up") / "data", inputs[0].parent)
    yield up
    up.close()


@pytest.fixture
def page(chromium: Browser, vendored: None, up: Up) -> Iterator[Page]:
    """A page that signed in with the first key."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    complaints = listen_for_complaints(page)
    page.goto(f"{up.client.connection.url}/")
    page.get_by_label("API key").fill(up.client.connection.api_key or "")
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("heading", name="Overview").wait_for()
    yield page
    context.close()
    assert complaints == []


def create(page: Page, request: dict[str, Any], name: str) -> str:
    """Fill in the form; the id of the job it made."""
    page.get_by_role("link", name="New job").click()
    page.get_by_label("Model", exact=True).fill(request["model"])
    page.get_by_label("Target", exact=True).fill("20%")
    page.get_by_label("Text to train on").fill(request["data"])
    page.get_by_label("Name optional").fill(name)
    page.get_by_text("Advanced: everything else").click()
    for label, value in (
        ("Width multiple", "1"),
        ("Increments", str(request["schedule"]["num_increments"])),
        ("Training tokens", str(request["schedule"]["num_tokens"])),
        ("Sequence length", "32"),
        ("Sequences per step", "4"),
        ("Context length", "32"),
    ):
        page.get_by_label(label, exact=True).fill(value)
    extra = {
        "importance": '{"calibration": {"num_samples": 4, "sequence_length": 32, "batch_size": 4}}',
        "allocation": '{"constraints": {"min_intermediate_size": 8}}',
        "evaluation": '{"speed": false}',
        "recovery": '{"precision": "float32"}',
        "output": '{"dtype": "float32"}',
    }
    written = ", ".join(f'"{key}": {value}' for key, value in extra.items())
    page.get_by_label("Anything more, as JSON").fill("{" + written + "}")
    expect(page.get_by_test_id("estimate-size")).to_contain_text("smaller", timeout=PATIENCE_MS)
    slider = page.get_by_test_id("target-slider")
    slider.focus()
    slider.press("ArrowLeft")
    expect(page.get_by_label("Target", exact=True)).not_to_have_value("20%")
    page.get_by_label("Target", exact=True).fill("30%")
    page.get_by_test_id("create").click()
    page.wait_for_url(re.compile(r"/jobs/job_"), timeout=PATIENCE_MS)
    return page.url.rpartition("/")[2]


def assert_download_is_whole(page: Page) -> None:
    page.get_by_role("link", name="Progress").click()
    row = page.get_by_test_id("checkpoints").locator("tbody tr").first
    row.get_by_text(re.compile(r"\d+ files")).click()
    file = row.locator("li", has_text="model.safetensors")
    with page.expect_download() as download:
        file.get_by_role("link").click()
    content = Path(download.value.path()).read_bytes()
    assert hashlib.sha256(content).hexdigest() == file.get_by_title("sha256").inner_text()


def test_from_the_form_to_a_verified_download(
    page: Page, up: Up, inputs: tuple[Path, Path]
) -> None:
    request = tiny_request(*inputs, num_tokens=LONG)
    long_id = create(page, request, "the long one")
    page.evaluate("window.sameDocument = true")
    tokens = page.get_by_test_id("tokens")
    expect(tokens).to_have_text(re.compile(r"[1-9]"), timeout=PATIENCE_MS)
    expect(page.get_by_test_id("plot-loss").locator("canvas")).to_be_visible(timeout=PATIENCE_MS)
    before = tokens.inner_text()
    expect(tokens).not_to_have_text(before, timeout=PATIENCE_MS)
    assert page.evaluate("window.sameDocument"), "the curve moved only because the page reloaded"

    page.get_by_test_id("pause").click()
    expect(page.get_by_test_id("status")).to_have_text("paused", timeout=PATIENCE_MS)
    page.get_by_test_id("resume").click()
    expect(page.get_by_test_id("status")).to_contain_text("running", timeout=PATIENCE_MS)
    expect(page.get_by_test_id("status")).to_contain_text("training", timeout=PATIENCE_MS)

    up.find("celery").kill()
    page.goto(f"{up.client.connection.url}/jobs/{long_id}/timeline")
    attempts = page.get_by_test_id("attempts")
    expect(attempts).to_contain_text("lease expired", timeout=PATIENCE_MS)
    expect(page.get_by_test_id("events")).to_contain_text("job.retrying", timeout=PATIENCE_MS)
    expect(page.get_by_test_id("status")).to_have_text("succeeded", timeout=2 * PATIENCE_MS)

    assert_download_is_whole(page)
    page.get_by_role("link", name="Playground").click()
    page.get_by_role("textbox", name="Prompt").fill("The gardener prunes")
    page.get_by_role("button", name="Ask both").click()
    expect(page.get_by_test_id("pruned-said")).not_to_be_empty(timeout=PATIENCE_MS)

    short = up.client.submit({**tiny_request(*inputs), "name": "the short one"})
    wait_until(lambda: up.client.get(short.id).ended, seconds=120, what="the short job")
    page.get_by_role("link", name="Jobs", exact=True).click()
    for name in ("the long one", "the short one"):
        page.get_by_label(f"Compare {name}").check()
    page.get_by_role("button", name="Compare the chosen").click()
    expect(page.get_by_test_id("compared")).to_contain_text("the long one")
    expect(page.get_by_test_id("plot-perplexity").locator("canvas")).to_be_visible()
    expect(page.get_by_test_id("metrics")).to_contain_text("Held-out perplexity")
    expect(page.get_by_test_id("differences")).to_contain_text("schedule.num_tokens")
