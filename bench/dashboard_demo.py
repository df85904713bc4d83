"""The whole way through the pages on the demo's model: a part of `python -m bench.dashboard`."""

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser

from api.dashboard.build import build
from espalier.demo.corpus import write_corpus
from tests.dashboard.looking import listen_for_complaints
from tests.dashboard.walk import Walk, sign_in
from tests.e2e.stack import Up

PATIENCE_MS = 300_000
CORPUS_TOKENS = 40_000
LONG_TOKENS, SHORT_TOKENS = 16_000, 3_000


def walk(browser: Browser, directory: Path, model: Path) -> dict[str, Any]:
    """Create, watch, pause, resume, kill the worker, download, ask, compare; what was found."""
    allowed = directory / "allowed"
    allowed.mkdir()
    copy = Path(shutil.copy(model, allowed))
    text = write_corpus(allowed / "text", num_tokens=CORPUS_TOKENS)
    (axe,) = build(directory / "axe", {"axe.min.js": "axe-core/axe.min.js"})
    up = Up(directory / "data", allowed)
    try:
        return _walk(browser, up, axe.read_text(), copy, text)
    finally:
        up.close()


def _walk(browser: Browser, up: Up, axe: str, model: Path, text: Path) -> dict[str, Any]:
    page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    complaints: list[str] = []
    listen_for_complaints(page, complaints)
    sign_in(page, up)
    way, started = Walk(page, up, axe, PATIENCE_MS), time.monotonic()
    job_id = way.create(_request(model, text, LONG_TOKENS, increments=2), "the long one")
    way.watch_the_curve_move()
    way.pause_and_resume()
    way.kill_the_worker(job_id)
    downloaded = way.download()
    way.ask_both("The function below reads a file and returns")
    way.submit_another(_request(model, text, SHORT_TOKENS, increments=1), "the short one")
    way.compare("the long one", "the short one")
    page.context.close()
    job = up.client.get(job_id)
    return {
        "model": model.name,
        "seconds": round(time.monotonic() - started, 1),
        "stations_in_both_themes": way.stations,
        "axe_serious": way.found,
        "console_and_csp": complaints,
        "attempts": job.attempt,
        "status": job.status,
        "downloaded_bytes_with_right_sha256": downloaded,
    }


def _request(model: Path, text: Path, num_tokens: int, *, increments: int) -> Mapping[str, Any]:
    return {
        "model": str(model),
        "target": "110M",
        "data": str(text),
        "importance": {"calibration": {"num_samples": 8, "sequence_length": 256, "batch_size": 2}},
        "schedule": {"num_increments": increments, "num_tokens": num_tokens},
        "recovery": {"sequence_length": 256, "batch_sequences": 4},
        "evaluation": {"context_length": 256, "speed": False},
    }
