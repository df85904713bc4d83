"""The whole way in a browser, on real processes: from the form to a verified download."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.dashboard.looking import listen_for_complaints
from tests.dashboard.walk import Walk, sign_in
from tests.e2e.stack import Up, tiny_request

PATIENCE_MS = 120_000
LONG = 90_000
"""Tokens of a job that lasts long enough to be paused, and killed, in the middle."""


@pytest.fixture
def walk(chromium: Browser, vendored: None, axe: str, up: Up) -> Iterator[Walk]:
    """A page that signed in with the first key, which must find nothing to complain of."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    complaints: list[str] = []
    listen_for_complaints(page, complaints)
    sign_in(page, up)
    walk = Walk(page, up, axe, PATIENCE_MS)
    yield walk
    context.close()
    assert complaints == []
    assert walk.found == []


def test_from_the_form_to_a_verified_download(walk: Walk, inputs: tuple[Path, Path]) -> None:
    job_id = walk.create(tiny_request(*inputs, num_tokens=LONG), "the long one")
    walk.watch_the_curve_move()
    walk.pause_and_resume()
    walk.kill_the_worker(job_id)
    assert walk.download() > 0
    walk.ask_both("The gardener prunes")
    walk.submit_another(tiny_request(*inputs), "the short one")
    walk.compare("the long one", "the short one")
