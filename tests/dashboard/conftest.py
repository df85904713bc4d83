"""The pages on the real application; most of them have nothing to do with which database it is."""

import json
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient
from playwright.sync_api import Browser, Page, expect, sync_playwright

from api.dashboard.build import NpmMissing, build, missing_files
from tests.api.conftest import (
    anonymous,
    app,
    client,
    holder,
    job_id,
    running_job_id,
    store,
    stranger,
)
from tests.dashboard.looking import listen_for_complaints
from tests.e2e.conftest import inputs, up
from tests.factories import Holder

__all__ = [
    "anonymous",
    "app",
    "client",
    "holder",
    "inputs",
    "job_id",
    "running_job_id",
    "store",
    "stranger",
    "up",
]


@pytest.fixture
def database_url(sqlite_template: Path, tmp_path: Path) -> str:
    """SQLite alone: what the pages show does not depend on the database."""
    path = tmp_path / "espalier.db"
    shutil.copy(sqlite_template, path)
    return f"sqlite:///{path}"


PICTURE_HEIGHT = 3200
FORM_TOKEN = re.compile(r'name="form_token" value="([0-9a-f]+)"')


def form_token(page: str) -> str:
    """The token that a page's forms send along."""
    found = FORM_TOKEN.search(page)
    assert found
    return found[1]


@pytest.fixture
def browser(anonymous: TestClient, holder: Holder) -> TestClient:
    """A client that signed in through the form."""
    page = anonymous.get("/sign-in?next=/jobs").text
    data = {"api_key": holder.secret, "form_token": form_token(page), "next": "/jobs"}
    response = anonymous.post("/sign-in", data=data)
    assert (response.status_code, response.headers["location"]) == (303, "/jobs")
    return anonymous


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """The system's browser."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("no chromium on PATH: install Debian's package `chromium`")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def vendored() -> None:
    """The browser libraries, built if they are not there."""
    if missing_files():
        try:
            build()
        except NpmMissing as error:
            pytest.skip(str(error))


@pytest.fixture(scope="session")
def axe(vendored: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The accessibility rules, by the lock file."""
    (path,) = build(tmp_path_factory.mktemp("axe"), {"axe.min.js": "axe-core/axe.min.js"})
    return path.read_text()


@pytest.fixture
def url(app: FastAPI) -> Iterator[str]:
    """The application behind a real server."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join(20)


@pytest.fixture(params=["light", "dark"])
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def complaints() -> list[str]:
    """What the console, scripts and the policy complained of; empty when the test has ended."""
    return []


@pytest.fixture
def page(
    chromium: Browser,
    vendored: None,
    url: str,
    holder: Holder,
    scheme: str,
    complaints: list[str],
) -> Iterator[Page]:
    """A page that signed in, whose console must stay silent and whose policy must not be broken."""
    context = chromium.new_context(color_scheme=scheme, viewport={"width": 1280, "height": 900})  # type: ignore[arg-type]
    page = context.new_page()
    listen_for_complaints(page, complaints)
    page.goto(f"{url}/jobs")
    page.get_by_label("API key").fill(holder.secret)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", name="Jobs")).to_be_visible()
    yield page
    context.close()
    assert complaints == []


def keep_picture(page: Page, name: str) -> None:
    """Write a picture of the upper part of the page, if pictures are asked for."""
    folder = os.environ.get("ESPALIER_TEST_SCREENSHOTS")
    if folder:
        width, height = page.evaluate("[innerWidth, document.documentElement.scrollHeight]")
        area = {"x": 0, "y": 0, "width": width, "height": min(height, PICTURE_HEIGHT)}
        path = Path(folder) / f"{name}.png"
        page.screenshot(path=path, full_page=True, clip=area)  # type: ignore[arg-type]


SIZES = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "vocab_size": 1000,
    "tie_word_embeddings": True,
}


@pytest.fixture
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with one model, of which only its configuration is looked at."""
    models = tmp_path_factory.mktemp("models")
    (models / "small").mkdir()
    (models / "small" / "config.json").write_text(json.dumps(SIZES))
    return models
