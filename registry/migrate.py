"""Bringing a database to the newest schema, from an installed package too."""

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Engine

from registry.settings import Settings

if TYPE_CHECKING:
    # Imported where it is used: processes that migrate nothing start sooner, and are smaller.
    from alembic.config import Config


def alembic_config(settings: Settings) -> "Config":
    """The Alembic configuration of the packaged migrations, for this database."""
    from alembic.config import Config

    directory = Path(str(files("migrations")))
    config = Config(directory / "alembic.ini")
    config.set_main_option("script_location", str(directory).replace("%", "%%"))
    config.attributes["settings"] = settings
    return config


def migrate(settings: Settings, revision: str = "head") -> None:
    """Upgrade the database to `revision`; done already is fine."""
    from alembic import command

    command.upgrade(alembic_config(settings), revision)


def current_revision(engine: Engine) -> str:
    """The revision that the database is at.

    Raises:
        ValueError: it was never migrated.
    """
    from alembic.runtime.migration import MigrationContext

    with engine.connect() as connection:
        revision = MigrationContext.configure(connection).get_current_revision()
    if revision is None:
        raise ValueError("the database was never migrated")
    return revision


def is_at_head(settings: Settings, engine: Engine) -> bool:
    """Whether the database has the schema that this code was written for."""
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    script = ScriptDirectory.from_config(alembic_config(settings))
    with engine.connect() as connection:
        context = MigrationContext.configure(connection)
        return set(context.get_current_heads()) == set(script.get_heads())
