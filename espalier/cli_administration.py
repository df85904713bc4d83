"""`espalier credentials | audit`: tokens for gated models, and who changed what."""

from typing import Annotated

import typer

from espalier import errors
from espalier.client import Client
from espalier.output import AsJson, print_done, print_json, print_table, table_of

credentials = typer.Typer(no_args_is_help=True, help="Tokens for gated models, kept sealed.")
audit = typer.Typer(no_args_is_help=True, help="Who changed what.")


@credentials.command("store")
def store(
    secret: Annotated[str, typer.Option(prompt="Token", hide_input=True, help="Asked for.")],
    name: Annotated[str | None, typer.Option(help="A note to tell them apart.")] = None,
    as_json: AsJson = False,
) -> None:
    """Keep a hub token; jobs name it as `model.credential`."""
    with Client() as client:
        made = client.store_credential(secret, name=name)
    if as_json:
        print_json(made)
    else:
        typer.echo(made.id)


@credentials.command("list")
def list_credentials(as_json: AsJson = False) -> None:
    """List the stored credentials, without their secrets."""
    with Client() as client:
        found = client.list_credentials()
    if as_json:
        print_json(found)
        return
    table = table_of("credential", "name", "kind")
    for one in found:
        table.add_row(one.id, one.name, one.kind)
    print_table(table)


@credentials.command("delete")
def delete(
    credential_id: Annotated[str, typer.Argument(help="Id of a credential, cred_…")],
    as_json: AsJson = False,
) -> None:
    """Forget a stored credential."""
    with Client() as client:
        client.delete_credential(credential_id)
    print_done(as_json, id=credential_id, deleted=True)


@audit.command("list")
def list_audit(
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20, as_json: AsJson = False
) -> None:
    """List what was changed, newest first."""
    with Client() as client:
        found = client.list_audit(limit=limit).data
    if as_json:
        print_json(found)
        return
    table = table_of("number", "when", "key", "did", "answer")
    for one in found:
        when = one.created_at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
        table.add_row(str(one.seq), when, one.key, f"{one.action} {one.path}", str(one.status))
    print_table(table)


@audit.command("verify")
def verify(as_json: AsJson = False) -> None:
    """Follow the chain of hashes; fails where it breaks."""
    with Client() as client:
        found = client.verify_audit()
    if as_json:
        print_json(found)
    elif found.valid:
        typer.echo(f"{found.entries} entries, the chain is whole")
    if not found.valid:
        raise errors.EspalierError(f"the audit log was tampered with at entry {found.broken_at}")
