"""`python -m registry migrate | create-key | sweep | gc | …`: what an operator runs."""

import json
import logging
import signal
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from celery import Celery
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from registry import api_keys, backup, deliveries, fsck, garbage, logs, outbox
from registry.db import SessionFactory, create_engine, session_factory, transaction
from registry.errors import RegistryError, StorageError
from registry.migrate import migrate
from registry.queue import celery_app, publisher
from registry.settings import Settings
from registry.storage import ArtifactStore, store_for
from registry.sweep import resume_stored, sweep

logger = logging.getLogger("registry")
app = typer.Typer(
    help="Operate the registry.", no_args_is_help=True, pretty_exceptions_enable=False
)


@app.command("migrate")
def migrate_command(
    revision: str = "head",
    with_key: Annotated[
        bool, typer.Option("--create-key", help="Make an API key too, as `create-key` does.")
    ] = False,
) -> None:
    """Bring the database to the newest schema."""
    migrate(Settings(), revision)
    if with_key:
        create_key()


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
    settings = Settings()
    logs.configure(settings.log_format)
    engine = create_engine(settings)
    if once:
        sweep_round(session_factory(engine), settings, celery_app(settings))
        return
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    _loop(engine, settings, stop)


@app.command("gc")
def collect_command() -> None:
    """Delete what no checkpoint refers to, once, and say in JSON how much that was."""
    settings = Settings()
    factory = session_factory(create_engine(settings))
    store = _store(settings)
    dropped = garbage.collect(factory, store)
    orphaned = garbage.collect_orphans(factory, store, settings)
    typer.echo(json.dumps({"dropped": asdict(dropped), "orphaned": asdict(orphaned)}))


@app.command("fsck")
def check_command() -> None:
    """Hash everything that is stored; report in JSON, exit with 1 if data is lost."""
    settings = Settings()
    report = fsck.check(session_factory(create_engine(settings)), _store(settings))
    _say_report(report)


@app.command("backup")
def backup_command(
    directory: Annotated[Path, typer.Argument(help="New or empty.")],
    blobs: Annotated[bool, typer.Option(help="Copy the artifacts too.")] = True,
) -> None:
    """Write a backup of database and artifacts; the service may run."""
    settings = Settings()
    try:
        manifest = backup.backup(settings, _store(settings), directory, with_blobs=blobs)
    except RegistryError as error:
        raise _refused(error) from error
    _say_backup(manifest)


@app.command("restore")
def restore_command(
    directory: Annotated[Path, typer.Argument(help="What `backup` wrote.")],
    verify: Annotated[bool, typer.Option("--verify", help="Check everything afterwards.")] = False,
) -> None:
    """Fill an empty database and the artifact store from a backup."""
    settings = Settings()
    store = _store(settings)
    try:
        manifest = backup.restore(settings, store, directory)
    except RegistryError as error:
        raise _refused(error) from error
    _say_backup(manifest)
    if verify:
        _say_report(fsck.check(session_factory(create_engine(settings)), store))


def _refused(error: RegistryError) -> typer.Exit:
    typer.echo(error.message, err=True)
    return typer.Exit(1)


def _say_backup(manifest: backup.BackupManifest) -> None:
    rows = {dump.name: dump.num_rows for dump in manifest.tables}
    blobs = {"blobs": len(manifest.blobs), "bytes": sum(manifest.blobs.values())}
    typer.echo(json.dumps({"revision": manifest.revision, "rows": rows, **blobs}))


def _say_report(report: fsck.Report) -> None:
    typer.echo(json.dumps({"sound": report.is_sound, **asdict(report)}))
    if not report.is_sound:
        raise typer.Exit(1)


def _store(settings: Settings) -> ArtifactStore:
    return store_for(settings.artifacts_url, reserve_bytes=settings.storage_reserve_bytes)


def _loop(engine: Engine, settings: Settings, stop: threading.Event) -> None:
    queue = celery_app(settings)
    factory = session_factory(engine)
    collector = Collector(factory, _store(settings), settings)
    sender = threading.Thread(
        target=deliveries.sending,
        args=(factory, settings, settings.installation_secret, stop.wait),
        name="webhooks",
    )
    sender.start()
    while not stop.is_set():
        try:
            sweep_round(factory, settings, queue)
            collector.collect_if_due()
        except DBAPIError as error:
            logger.warning("database is away, sweeping later: %s", type(error.orig).__name__)
        stop.wait(settings.sweep_seconds)
    sender.join()


class Collector:
    """Collects garbage now and then, beside the sweeping: the store is listed far more rarely."""

    def __init__(self, factory: SessionFactory, store: ArtifactStore, settings: Settings) -> None:
        self._factory = factory
        self._store = store
        self._settings = settings
        self._collected_at = self._listed_at = float("-inf")

    def collect_if_due(self) -> None:
        """Collect what was dropped, and the orphans, each when its time has come.

        Raises:
            DBAPIError: the database is away.
        """
        now = time.monotonic()
        if now - self._collected_at < self._settings.collect_seconds:
            return
        self._collected_at = now
        try:
            self._report(garbage.collect(self._factory, self._store))
            with transaction(self._factory) as session:
                resume_stored(session, self._store, self._settings)
            if now - self._listed_at >= self._settings.garbage_age_seconds:
                self._listed_at = now
                self._report(garbage.collect_orphans(self._factory, self._store, self._settings))
        except (OSError, StorageError) as error:
            logger.warning("artifacts are away, collecting later: %s", error)

    def _report(self, collected: garbage.Collected) -> None:
        if collected:
            logger.info("collected %s", collected)


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
