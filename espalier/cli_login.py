"""`espalier login | logout | usage`: whose commands these are, and what they have used."""

from typing import Annotated

import typer

from espalier.client import Client
from espalier.connection import Connection, forget_login, keep_login
from espalier.live import duration
from espalier.output import AsJson, print_done, print_json, show_rows

account = typer.Typer()


@account.command()
def login(
    url: Annotated[str, typer.Argument(help="Address of the server, https://…")],
    api_key: Annotated[
        str,
        typer.Option(prompt="API key", hide_input=True, help="Asked for unless given."),
    ],
    as_json: AsJson = False,
) -> None:
    """Keep an address and a key for all later commands, readable by you alone."""
    with Client(url, api_key) as client:
        client.list_jobs(limit=1)
    path = keep_login(Connection(url=url.rstrip("/"), api_key=api_key))
    if as_json:
        print_done(as_json, url=url.rstrip("/"), kept_in=str(path))
    else:
        typer.echo(f"kept in {path}")


@account.command()
def logout(as_json: AsJson = False) -> None:
    """Forget what `login` has kept."""
    forget_login()
    print_done(as_json, forgotten=True)


@account.command()
def usage(as_json: AsJson = False) -> None:
    """Show what was used in the last 30 days, what is used now, and the limits."""
    with Client() as client:
        found = client.usage()
    if as_json:
        print_json(found)
        return
    limits = {name: value for name, value in found.quotas.items() if value is not None}
    show_rows(
        {
            "since": found.since.astimezone().strftime("%Y-%m-%d %H:%M"),
            "jobs": ", ".join(f"{count} {status}" for status, count in found.jobs.items()),
            "tokens": f"{found.tokens:,}",
            "workers": duration(found.worker_seconds),
            "queued now": str(found.queued_now),
            "running now": str(found.running_now),
            "stored now": f"{found.storage_bytes_now / 1e9:.2f} GB",
            "limits": ", ".join(f"{name} {value:,}" for name, value in limits.items()),
        }
    )
