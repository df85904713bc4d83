"""`python -m registry migrate | create-key | sweep | gc | …`: what an operator runs.

Each command imports what it alone needs: every start of the service waits for `migrate`.
"""

import json
import signal
import threading
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from registry import api_keys, logs
from registry.db import create_engine, session_factory, transaction
from registry.errors import RegistryError
from registry.migrate import migrate
from registry.settings import Settings

if TYPE_CHECKING:
    from registry.backup import BackupManifest
    from registry.fsck import Report
    from registry.storage import ArtifactStore

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
    from registry.queue import celery_app
    from registry.sweeping import run_until, sweep_round

    settings = Settings()
    logs.configure(settings.log_format)
    engine = create_engine(settings)
    if once:
        sweep_round(session_factory(engine), settings, celery_app(settings))
        return
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    run_until(stop, engine, settings)


@app.command("gc")
def collect_command() -> None:
    """Delete what no checkpoint refers to, once, and say in JSON how much that was."""
    from registry import garbage

    settings = Settings()
    factory = session_factory(create_engine(settings))
    store = _store(settings)
    dropped = garbage.collect(factory, store)
    orphaned = garbage.collect_orphans(factory, store, settings)
    typer.echo(json.dumps({"dropped": asdict(dropped), "orphaned": asdict(orphaned)}))


@app.command("fsck")
def check_command() -> None:
    """Hash everything that is stored; report in JSON, exit with 1 if data is lost."""
    from registry import fsck

    settings = Settings()
    report = fsck.check(session_factory(create_engine(settings)), _store(settings))
    _say_report(report)


@app.command("backup")
def backup_command(
    directory: Annotated[Path, typer.Argument(help="New or empty.")],
    blobs: Annotated[bool, typer.Option(help="Copy the artifacts too.")] = True,
) -> None:
    """Write a backup of database and artifacts; the service may run."""
    from registry import backup

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
    from registry import backup, fsck

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


def _say_backup(manifest: "BackupManifest") -> None:
    rows = {dump.name: dump.num_rows for dump in manifest.tables}
    blobs = {"blobs": len(manifest.blobs), "bytes": sum(manifest.blobs.values())}
    typer.echo(json.dumps({"revision": manifest.revision, "rows": rows, **blobs}))


def _say_report(report: "Report") -> None:
    typer.echo(json.dumps({"sound": report.is_sound, **asdict(report)}))
    if not report.is_sound:
        raise typer.Exit(1)


def _store(settings: Settings) -> "ArtifactStore":
    from registry.storage import store_for

    return store_for(settings.artifacts_url, reserve_bytes=settings.storage_reserve_bytes)


if __name__ == "__main__":
    app()
