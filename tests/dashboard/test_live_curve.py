"""A running job's curve in a real browser: steps go into it without the page asking for more."""

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, Route, expect

from registry.db import SessionFactory, transaction
from registry.tables import Job
from tests.factories import Holder, make_job, make_steps, start_job

PAUSE_MS = 15_000
TOKENS = 4096
"""Of a step."""

pytestmark = pytest.mark.parametrize("scheme", ["light"], indirect=True)


@pytest.fixture
def open_job(
    page: Page, url: str, factory: SessionFactory, holder: Holder
) -> Callable[[int], Callable[[int], None]]:
    """Open the page of a job that took so many steps; what it gives lets the job take more."""

    def open_it(steps: int) -> Callable[[int], None]:
        with transaction(factory) as session:
            job = make_job(session, holder.tenant_id)
            start_job(session, job)
            make_steps(session, job, first=1, count=steps)
            job_id = job.id

        def take(count: int) -> None:
            with transaction(factory) as session:
                job = session.get_one(Job, job_id)
                make_steps(session, job, first=job.step + 1, count=count)

        page.goto(f"{url}/jobs/{job_id}", wait_until="networkidle" if steps else "load")
        return take

    return open_it


def test_a_step_goes_into_curve_and_numbers_without_another_request(
    page: Page, open_job: Callable[[int], Callable[[int], None]]
) -> None:
    take = open_job(20)
    curve = page.get_by_test_id("plot-loss").locator("canvas")
    expect(curve).to_be_visible(timeout=PAUSE_MS)
    before = curve.evaluate("canvas => canvas.toDataURL()")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    take(3)
    expect(page.get_by_test_id("tokens")).to_have_text(f"{23 * TOKENS:,}", timeout=PAUSE_MS)
    expect(page.get_by_test_id("plot-loss")).to_contain_text(f"{23 * TOKENS:,}")
    assert curve.evaluate("canvas => canvas.toDataURL()") != before
    assert asked == []


def test_the_newest_step_can_be_read_off_the_curve(
    page: Page, open_job: Callable[[int], Callable[[int], None]]
) -> None:
    take = open_job(20)
    plot = page.get_by_test_id("plot-loss")
    expect(plot.locator("canvas")).to_be_visible(timeout=PAUSE_MS)
    take(3)
    expect(plot).to_contain_text(f"{23 * TOKENS:,}", timeout=PAUSE_MS)
    plot.locator(".u-over").hover(position={"x": 1, "y": 60})
    expect(plot).to_contain_text(f"tokens{TOKENS:,}")
    plot.locator(".u-over").hover(position={"x": 250, "y": 60})
    expect(plot).to_contain_text(f"tokens{23 * TOKENS:,}")


def test_the_first_step_brings_the_curve(
    page: Page, open_job: Callable[[int], Callable[[int], None]]
) -> None:
    take = open_job(0)
    expect(page.get_by_test_id("plot-loss")).to_contain_text("Nothing to draw yet")
    take(2)
    expect(page.get_by_test_id("plot-loss").locator("canvas")).to_be_visible(timeout=PAUSE_MS)


def test_steps_beyond_the_axes_widen_them(
    page: Page, open_job: Callable[[int], Callable[[int], None]]
) -> None:
    take = open_job(20)
    plot = page.get_by_test_id("plot-loss")
    expect(plot.locator("canvas")).to_be_visible(timeout=PAUSE_MS)
    take(180)
    expect(plot).to_contain_text(f"{200 * TOKENS:,}", timeout=PAUSE_MS)
    plot.locator(".u-over").hover(position={"x": 60, "y": 60})
    expect(plot).to_contain_text(f"tokens{20 * TOKENS:,}")


def test_steps_taken_before_the_stream_began_are_in_the_curve(
    page: Page, open_job: Callable[[int], Callable[[int], None]]
) -> None:
    take = open_job(20)
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    page.route("**/stream*", hold)
    page.reload()
    plot = page.get_by_test_id("plot-loss")
    expect(plot).to_contain_text(f"{20 * TOKENS:,}", timeout=PAUSE_MS)
    take(3)
    held[0].continue_()
    expect(plot).to_contain_text(f"{23 * TOKENS:,}", timeout=PAUSE_MS)
    expect(page.get_by_test_id("tokens")).to_have_text(f"{23 * TOKENS:,}", timeout=PAUSE_MS)
