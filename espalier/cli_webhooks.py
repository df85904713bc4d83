"""`espalier webhooks`: where the server reports events, and what became of each message."""

from typing import Annotated

import typer

from espalier.client import Client
from espalier.output import AsJson, print_done, print_json, print_table, table_of

webhooks = typer.Typer(no_args_is_help=True, help="Where the server reports events.")

WebhookId = Annotated[str, typer.Argument(help="Id of a webhook, wh_…")]


@webhooks.command("create")
def create(
    url: Annotated[str, typer.Argument(help="An https:// address.")],
    event: Annotated[list[str], typer.Option(help="Repeatable, such as job.succeeded.")],
    as_json: AsJson = False,
) -> None:
    """Hear of all jobs at an address; prints the secret, this once."""
    with Client() as client:
        made = client.create_webhook(url, event)
    if as_json:
        print_json(made)
    else:
        typer.echo(f"{made.id}  {made.secret}")


@webhooks.command("list")
def list_webhooks(as_json: AsJson = False) -> None:
    """List the webhooks of the tenant."""
    with Client() as client:
        found = client.list_webhooks()
    if as_json:
        print_json(found)
        return
    table = table_of("webhook", "address", "events", "status")
    for one in found:
        table.add_row(one.id, one.url, " ".join(one.events), one.status)
    print_table(table)


@webhooks.command("deliveries")
def list_deliveries(
    webhook_id: WebhookId,
    limit: Annotated[int, typer.Option(min=1, max=100)] = 20,
    as_json: AsJson = False,
) -> None:
    """List what was sent and how it was answered, newest first."""
    with Client() as client:
        found = client.list_deliveries(webhook_id, limit=limit).data
    if as_json:
        print_json(found)
        return
    table = table_of("delivery", "event", "status", "attempts", "answer")
    for one in found:
        answer = one.error or (str(one.status_code) if one.status_code else None)
        table.add_row(one.id, one.event_type, one.status, str(one.attempts), answer)
    print_table(table)


@webhooks.command("redeliver")
def redeliver(
    webhook_id: WebhookId,
    delivery_id: Annotated[str, typer.Argument(help="Id of a delivery, dlv_…")],
    as_json: AsJson = False,
) -> None:
    """Send a message again."""
    with Client() as client:
        client.redeliver(webhook_id, delivery_id)
    print_done(as_json, id=delivery_id, queued=True)


@webhooks.command("test")
def send_test(webhook_id: WebhookId, as_json: AsJson = False) -> None:
    """Send a message of type webhook.test."""
    with Client() as client:
        made = client.test_webhook(webhook_id)
    if as_json:
        print_json(made)
    else:
        typer.echo(made.id)


@webhooks.command("rotate")
def rotate(
    webhook_id: WebhookId,
    overlap: Annotated[int, typer.Option(min=0, help="Seconds the old one signs too.")] = 86_400,
    as_json: AsJson = False,
) -> None:
    """Replace the secret and print the new one, this once."""
    with Client() as client:
        found = client.rotate_webhook_secret(webhook_id, overlap_seconds=overlap)
    if as_json:
        print_json(found)
    else:
        typer.echo(found.secret)


@webhooks.command("delete")
def delete(webhook_id: WebhookId, as_json: AsJson = False) -> None:
    """Call it no more."""
    with Client() as client:
        client.delete_webhook(webhook_id)
    print_done(as_json, id=webhook_id, deleted=True)
