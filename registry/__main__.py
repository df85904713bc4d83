"""`python -m registry migrate | create-key | sweep`: what an operator runs beside the servers."""

import logging
import signal
import threading
from typing import Annotated

import typer
from celery import Celery
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from registry import api_keys, outbox
from registry.db import SessionFactory, create_engine, session_factory, transaction
from registry.migrate import migrate
from registry.queue import celery_app, publisher
from registry.settings import Settings
from registry.sweep import sweep

logger = logging.getLogger("registry")
app = typer.Typer(
    help="Operate the registry.", no_args_is_help=True, pretty_exceptions_enable=False
)


@app.command("migrate")
def migrate_command(revision: str = "head") -> None:
    """Bring the database to the newest schema."""
    migrate(Settings(), revision)


@app.command()
def create_key(
    tenant: str = api_keys.DEFAULT_TENANT,
    name: Annotated[str | None, typer.Option(help="A note to tell keys apart.")] = None,
    scope: Annotated[list[str] | None, typer.Option(help="Repeatable; all by default.")] = None,
) -> None:
    """Make an API key and write its secret, once, to standard output."""
    factory = session_factory(create_engine(Settings()))
    with transaction(factory) as session:
        owner = api_keys.get_or_create_tenant(session, tenant)
        _, secret = api_keys.create(session, owner, scope or api_keys.SCOPES, name=name)
    typer.echo(secret)


@app.command("sweep")
def sweep_command(
    once: Annotated[bool, typer.Option("--once", help="One round instead of a loop.")] = False,
) -> None:
    """Expire leases, enforce deadlines, hint at queued jobs and send the outbox, until stopped."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    settings = Settings()
    engine = create_engine(settings)
    if once:
        sweep_round(session_factory(engine), settings, celery_app(settings))
        return
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    _loop(engine, settings, stop)


def _loop(engine: Engine, settings: Settings, stop: threading.Event) -> None:
    queue = celery_app(settings)
    factory = session_factory(engine)
    while not stop.is_set():
        try:
            sweep_round(factory, settings, queue)
        except DBAPIError as error:
            logger.warning("database is away, sweeping later: %s", type(error.orig).__name__)
        stop.wait(settings.sweep_seconds)


def sweep_round(factory: SessionFactory, settings: Settings, queue: Celery) -> None:
    """One sweep, then what it and everyone else left in the outbox."""
    with transaction(factory) as session:
        swept = sweep(session, settings)
    if swept:
        logger.info("swept %s", swept)
    with transaction(factory) as session:
        outbox.relay(session, publisher(queue))


if __name__ == "__main__":
    app()
