"""`espalier models` and `espalier compare`: what was published, by name and side by side."""

from typing import Annotated

import typer

from espalier.client import Client
from espalier.live import duration, millions
from espalier.output import AsJson, print_json, print_table, table_of

models = typer.Typer(no_args_is_help=True, help="Registered models, their versions and aliases.")
comparisons = typer.Typer()

ModelName = Annotated[str, typer.Argument(help="Name of a registered model.")]


@models.command("register")
def register(
    name: ModelName,
    checkpoint: Annotated[str | None, typer.Option(help="Its first version, ckpt_…")] = None,
    as_json: AsJson = False,
) -> None:
    """Register a model."""
    with Client() as client:
        model = client.register_model(name)
        if checkpoint is not None:
            client.add_version(name, checkpoint)
    if as_json:
        print_json(model)
    else:
        typer.echo(model.name)


@models.command("list")
def list_models(as_json: AsJson = False) -> None:
    """List the registered models."""
    with Client() as client:
        found = client.list_models().data
    if as_json:
        print_json(found)
        return
    table = table_of("model", "versions", "aliases", "description")
    for model in found:
        aliases = ", ".join(f"{one.alias} = {one.version}" for one in model.aliases)
        table.add_row(model.name, str(model.last_version), aliases, model.description)
    print_table(table)


@models.command("add")
def add(
    name: ModelName,
    checkpoint: Annotated[str, typer.Argument(help="Id of a checkpoint, ckpt_…")],
    description: Annotated[str | None, typer.Option(help="What is new.")] = None,
    as_json: AsJson = False,
) -> None:
    """Add a checkpoint as the next version; it is kept from now on."""
    with Client() as client:
        version = client.add_version(name, checkpoint, description=description)
    if as_json:
        print_json(version)
    else:
        typer.echo(str(version.version))


@models.command("versions")
def versions(name: ModelName, as_json: AsJson = False) -> None:
    """List the versions of a model, newest first."""
    with Client() as client:
        found = client.list_versions(name)
    if as_json:
        print_json(found)
        return
    table = table_of("version", "checkpoint", "description")
    for version in found:
        table.add_row(str(version.version), version.checkpoint, version.description)
    print_table(table)


@models.command("alias")
def alias(
    name: ModelName,
    alias: Annotated[str, typer.Argument(help="Such as production.")],
    version: Annotated[int, typer.Argument(min=1, help="The version it shall name.")],
    revision: Annotated[
        int | None, typer.Option(help="Where it stands now; needed to move it.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Set an alias; one that exists moves only if it stands at --revision."""
    with Client() as client:
        found = client.set_alias(name, alias, version, revision=revision)
    if as_json:
        print_json(found)
    else:
        typer.echo(f"{found.alias} = {found.version}, revision {found.revision}")


@comparisons.command()
def compare(
    job_ids: Annotated[list[str], typer.Argument(help="Ids of jobs.")], as_json: AsJson = False
) -> None:
    """Show jobs side by side, and where their recipes differ."""
    with Client() as client:
        found = client.compare(job_ids)
    if as_json:
        print_json(found)
        return
    table = table_of("job", "name", "status", "parameters", "perplexity", "x base", "took")
    for job in found.jobs:
        last = job.points[0] if job.points else None
        table.add_row(
            job.id,
            job.name,
            job.status,
            millions(job.params_now) if job.params_now else None,
            f"{last.perplexity:.2f}" if last else None,
            f"{last.baseline_ratio:.2f}" if last and last.baseline_ratio else None,
            duration(job.seconds),
        )
    for field, values in found.differences.items():
        table.caption = (table.caption or "") + f"{field}: {', '.join(map(str, values))}\n"
    print_table(table)
