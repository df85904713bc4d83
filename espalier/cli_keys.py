"""`espalier keys`: the keys that open a server."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from espalier import errors
from espalier.administration import ApiKey
from espalier.client import Client
from espalier.connection import default_data_dir, read_key
from espalier.output import AsJson, print_done, print_json, print_table, table_of

keys = typer.Typer(no_args_is_help=True, help="API keys.")

KeyId = Annotated[str, typer.Argument(help="Id of a key, key_…")]


@keys.command("show")
def keys_show(
    data_dir: Annotated[Path | None, typer.Option(help="As given to `up`.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print the first admin key that `espalier up` made here."""
    directory = data_dir or default_data_dir()
    if (secret := read_key(directory)) is None:
        raise errors.EspalierError(f"no readable key in {directory}; `espalier up` makes one")
    if as_json:
        print_done(as_json, secret=secret)
    else:
        typer.echo(secret)


@keys.command("create")
def create(
    scope: Annotated[list[str], typer.Option(help="Repeatable, such as jobs:read, or admin.")],
    name: Annotated[str | None, typer.Option(help="A note to tell keys apart.")] = None,
    days: Annotated[int | None, typer.Option(min=1, help="Expires after so many days.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and print its secret, this once."""
    expires_at = datetime.now(UTC) + timedelta(days=days) if days else None
    with Client() as client:
        _show_secret(client.create_key(scope, name=name, expires_at=expires_at), as_json)


@keys.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """List the keys of the tenant."""
    with Client() as client:
        found = client.list_keys()
    if as_json:
        print_json(found)
        return
    table = table_of("key", "name", "begins", "scopes", "state")
    for key in found:
        table.add_row(key.id, key.name, f"pk_{key.prefix}", " ".join(key.scopes), _state(key))
    print_table(table)


@keys.command("rotate")
def rotate(
    key_id: KeyId,
    overlap: Annotated[int, typer.Option(min=0, help="Seconds the old one still works.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Replace a key and print the new secret, this once."""
    with Client() as client:
        _show_secret(client.rotate_key(key_id, overlap_seconds=overlap), as_json)


@keys.command("revoke")
def revoke(key_id: KeyId, as_json: AsJson = False) -> None:
    """Make a key worthless at once."""
    with Client() as client:
        client.revoke_key(key_id)
    print_done(as_json, id=key_id, revoked=True)


def _show_secret(key: ApiKey, as_json: bool) -> None:
    if as_json:
        print_json(key)
    else:
        typer.echo(key.secret)


def _state(key: ApiKey) -> str:
    if key.revoked_at is not None:
        return "revoked"
    if key.expires_at is not None and key.expires_at <= datetime.now(UTC):
        return "expired"
    return "active"
