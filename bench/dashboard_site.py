"""The application behind a real server, furnished, for the bench of the dashboard."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import uvicorn
from playwright.sync_api import Browser, CDPSession, Page
from sqlalchemy import insert

from api.main import create_app
from api.settings import ApiSettings
from registry.db import SessionFactory, create_engine, session_factory, transaction
from registry.ids import new_id
from registry.migrate import migrate
from registry.settings import Settings
from registry.storage import LocalStore
from registry.tables import Job, JobEvent
from tests.dashboard.world import World, furnish
from tests.factories import Holder, make_holder


@dataclass(frozen=True)
class Site:
    """The application behind a real server, with a tenant that has some of everything."""

    url: str
    factory: SessionFactory
    holder: Holder
    world: World


@contextmanager
def serve(directory: Path) -> Iterator[Site]:
    """The site while the block lasts, everything of it under `directory`."""
    settings = Settings(data_dir=directory, storage_reserve_bytes=0)
    migrate(settings)
    factory = session_factory(create_engine(settings))
    with transaction(factory) as session:
        holder = make_holder(session)
    (directory / "made").mkdir()
    store = LocalStore(directory / "artifacts")
    world = furnish(factory, settings, store, holder, directory / "made")
    app = create_app(settings, ApiSettings(hub_seconds=0))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield Site(f"http://127.0.0.1:{listener.getsockname()[1]}", factory, holder, world)
        server.should_exit = True
        thread.join(20)


def sign_in(browser: Browser, site: Site) -> tuple[Page, CDPSession]:
    """A page of a browser that has seen nothing yet, signed in."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.goto(f"{site.url}/sign-in")
    page.get_by_label("API key").fill(site.holder.secret)
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("heading", name="Overview").wait_for()
    return page, context.new_cdp_session(page)


def add_jobs(site: Site, count: int) -> None:
    """So many jobs that have succeeded, with the events of their lives."""
    with transaction(site.factory) as session:
        model = session.get_one(Job, site.world.finished)
        columns = {c.key: getattr(model, c.key) for c in Job.__mapper__.column_attrs}
        now = datetime.now(UTC)
        rows, said = [], []
        for number in range(count):
            at = now - timedelta(seconds=number)
            row = {**columns, "id": new_id("job"), "name": f"job {number}", "created_at": at}
            rows.append(row)
            said += [
                {
                    "job_id": row["id"],
                    "seq": seq,
                    "id": new_id("evt"),
                    "type": kind,
                    "level": "info",
                    "data": {"status": status, "reason": None},
                    "fence": 1,
                    "created_at": at,
                }
                for seq, (kind, status) in enumerate(
                    (
                        ("job.queued", "queued"),
                        ("job.started", "running"),
                        ("job.succeeded", "succeeded"),
                    ),
                    1,
                )
            ]
        session.execute(insert(Job), rows)
        session.execute(insert(JobEvent), said)
