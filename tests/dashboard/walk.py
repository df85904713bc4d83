"""The whole way through the pages, on real processes: a tiny model for tests, a real one for bench.

At each station the page is looked at in both themes: axe's serious findings are collected, as are
complaints of the console and of the content security policy.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, expect

from api.dashboard.form_fields import ADVANCED
from api.dashboard.job_form import fill
from tests.dashboard.looking import findings
from tests.e2e.stack import Up, wait_until

THEMES = ("light", "dark")


def sign_in(page: Page, up: Up) -> None:
    """Open the dashboard with the service's first key."""
    page.goto(f"{up.client.connection.url}/")
    page.get_by_label("API key").fill(up.client.connection.api_key or "")
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("heading", name="Overview").wait_for()


@dataclass
class Walk:
    """A browser that signed in, the service behind it, and what was found on the way."""

    page: Page
    up: Up
    axe: str
    patience_ms: float
    found: list[str] = field(default_factory=list)
    stations: list[str] = field(default_factory=list)

    def look(self, station: str) -> None:
        """Note what is seriously wrong with the page as it stands, in both themes."""
        for theme in THEMES:
            self.page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
            self.page.wait_for_timeout(100)
            self.found += [f"{station}, {theme}: {one}" for one in findings(self.page, self.axe)]
        self.stations.append(station)

    def create(self, request: Mapping[str, Any], name: str) -> str:
        """Fill in the form and send it; the id of the job it made."""
        page = self.page
        page.get_by_role("link", name="New job").click()
        filled = fill({key: value for key, value in request.items() if key != "target"})
        page.get_by_label("Model", exact=True).fill(filled.values["model"])
        page.get_by_label("Target", exact=True).fill("20%")
        page.get_by_label("Text to train on").fill(filled.values["data"])
        page.get_by_label("Name optional").fill(name)
        page.get_by_text("Advanced: everything else").click()
        for key, value in filled.values.items():
            box = page.locator(f'#newjob [name="{key}"]')
            if key == "extra" or (key in ADVANCED and ADVANCED[key].kind != "choice"):
                box.fill(value)
            elif key in ADVANCED:
                box.select_option(value)
        self._expect("estimate-size").to_contain_text("smaller", timeout=self.patience_ms)
        slider = page.get_by_test_id("target-slider")
        slider.focus()
        slider.press("ArrowLeft")
        expect(page.get_by_label("Target", exact=True)).not_to_have_value("20%")
        page.get_by_label("Target", exact=True).fill(str(request["target"]))
        self.look(f"new job: {name}")
        page.get_by_test_id("create").click()
        page.wait_for_url(re.compile(r"/jobs/job_"), timeout=self.patience_ms)
        return page.url.rpartition("/")[2]

    def watch_the_curve_move(self) -> None:
        """Without a reload of the page."""
        page = self.page
        page.evaluate("window.sameDocument = true")
        tokens = page.get_by_test_id("tokens")
        expect(tokens).to_have_text(re.compile(r"[1-9]"), timeout=self.patience_ms)
        curve = page.get_by_test_id("plot-loss").locator("canvas")
        expect(curve).to_be_visible(timeout=self.patience_ms)
        before = tokens.inner_text()
        expect(tokens).not_to_have_text(before, timeout=self.patience_ms)
        assert page.evaluate("window.sameDocument"), "the page was loaded again"
        self.look("running")

    def pause_and_resume(self) -> None:
        """From training to training."""
        self.page.get_by_test_id("pause").click()
        self._expect("status").to_have_text("paused", timeout=self.patience_ms)
        self.look("paused")
        self.page.get_by_test_id("resume").click()
        self._expect("status").to_contain_text("running", timeout=self.patience_ms)
        self._expect("status").to_contain_text("training", timeout=self.patience_ms)

    def kill_the_worker(self, job_id: str) -> None:
        """And see the lost lease and the retry on the timeline, until the job has succeeded."""
        self.up.find("celery").kill()
        self.page.goto(f"{self.up.client.connection.url}/jobs/{job_id}/timeline")
        self._expect("attempts").to_contain_text("lease expired", timeout=self.patience_ms)
        self._expect("events").to_contain_text("job.retrying", timeout=self.patience_ms)
        self.look("retrying")
        self._expect("status").to_have_text("succeeded", timeout=2 * self.patience_ms)

    def download(self) -> int:
        """The newest checkpoint's weights, whose digest is the one that stands beside them."""
        self.page.get_by_role("link", name="Progress").click()
        row = self.page.get_by_test_id("checkpoints").locator("tbody tr").first
        row.get_by_text(re.compile(r"\d+ files")).click()
        file = row.locator("li", has_text="model.safetensors")
        with self.page.expect_download(timeout=self.patience_ms) as download:
            file.get_by_role("link").click()
        content = Path(download.value.path()).read_bytes()
        assert hashlib.sha256(content).hexdigest() == file.get_by_title("sha256").inner_text()
        self.look("succeeded")
        return len(content)

    def ask_both(self, prompt: str) -> None:
        """The playground, answered by the worker."""
        self.page.get_by_role("link", name="Playground").click()
        self.page.get_by_role("textbox", name="Prompt").fill(prompt)
        self.page.get_by_role("button", name="Ask both").click()
        self._expect("pruned-said").not_to_be_empty(timeout=self.patience_ms)
        self.look("playground")

    def submit_another(self, request: Mapping[str, Any], name: str) -> None:
        """A second job, beside the browser."""
        job = self.up.client.submit({**request, "name": name})
        client, seconds = self.up.client, self.patience_ms / 1000
        wait_until(lambda: client.get(job.id).ended, seconds=seconds, what=name)
        assert client.get(job.id).status == "succeeded", client.get(job.id)

    def compare(self, first: str, second: str) -> None:
        """Two jobs chosen in the list."""
        page = self.page
        page.get_by_role("link", name="Jobs", exact=True).click()
        for name in (first, second):
            page.get_by_label(f"Compare {name}").check()
        page.get_by_role("button", name="Compare the chosen").click()
        self._expect("compared").to_contain_text(first)
        expect(page.get_by_test_id("plot-perplexity").locator("canvas")).to_be_visible()
        self._expect("metrics").to_contain_text("Held-out perplexity")
        self._expect("differences").to_contain_text("schedule.num_tokens")
        self.look("compare")

    def _expect(self, test_id: str) -> Any:
        return expect(self.page.get_by_test_id(test_id))
