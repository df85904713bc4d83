"""The `espalier` command; each group of commands has a module of its own.

Exit codes are those of `espalier.exit_codes`.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from espalier import errors, maintenance
from espalier.cli_administration import audit, credentials
from espalier.cli_checkpoints import published
from espalier.cli_files import files
from espalier.cli_jobs import jobs
from espalier.cli_keys import keys
from espalier.cli_login import account
from espalier.cli_models import comparisons, models
from espalier.cli_push import publishing
from espalier.cli_webhooks import webhooks
from espalier.connection import default_data_dir
from espalier.exit_codes import INTERRUPTED, MEANINGS, exit_code_of
from espalier.up import Options, UpError, serve


class _Commands(typer.core.TyperGroup):
    """Says what went wrong in one line and exits with its code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except errors.EspalierError as error:
            typer.echo(f"espalier: {error}", err=True)
            raise typer.Exit(exit_code_of(error)) from error
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Give it a model, the size you want and your text; get back a model of that size.",
    epilog="Exit codes: " + ", ".join(f"{code} {why}" for code, why in MEANINGS.items()) + ".",
)
for commands in (jobs, published, account, comparisons, publishing, maintenance.app):
    app.add_typer(commands)
for name, group in {
    "keys": keys,
    "files": files,
    "models": models,
    "webhooks": webhooks,
    "credentials": credentials,
    "audit": audit,
}.items():
    app.add_typer(group, name=name)


@app.command()
def up(
    host: Annotated[str, typer.Option(envvar="ESPALIER_HOST", help="Address to listen on.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(envvar="ESPALIER_PORT", help="0 takes a free one.")] = 8000,
    data_dir: Annotated[
        Path | None, typer.Option(help="Where everything is kept. Also ESPALIER_DATA_DIR.")
    ] = None,
    allow_path: Annotated[
        list[Path] | None,
        typer.Option(help="Jobs may read models and text under this directory. Repeatable."),
    ] = None,
    stop_timeout: Annotated[
        float, typer.Option(help="Seconds the worker gets to reach a boundary.")
    ] = 150,
    as_json: Annotated[bool, typer.Option("--json", help="Print every line as JSON.")] = False,
) -> None:
    """Run the whole service on this machine until Ctrl-C: API, dashboard, worker, sweeper."""
    options = Options(
        host=host,
        port=port,
        data_dir=(data_dir or default_data_dir()).expanduser().absolute(),
        allowed_paths=tuple(path.expanduser().resolve() for path in allow_path or ()),
        stop_seconds=stop_timeout,
        as_json=as_json,
    )
    try:
        serve(options)
    except UpError as error:
        typer.echo(f"espalier up: {error}", err=True)
        raise typer.Exit(1) from error
