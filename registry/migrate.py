"""Bringing a database to the newest schema, from an installed package too."""

from importlib.resources import files
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine

from registry.settings import Settings


def alembic_config(settings: Settings) -> Config:
    """The Alembic configuration of the packaged migrations, for this database."""
    directory = Path(str(files("migrations")))
    config = Config(directory / "alembic.ini")
    config.set_main_option("script_location", str(directory).replace("%", "%%"))
    config.attributes["settings"] = settings
    return config


def migrate(settings: Settings, revision: str = "head") -> None:
    """Upgrade the database to `revision`; done already is fine."""
    command.upgrade(alembic_config(settings), revision)


def current_revision(engine: Engine) -> str:
    """The revision that the database is at.

    Raises:
        ValueError: it was never migrated.
    """
    with engine.connect() as connection:
        revision = MigrationContext.configure(connection).get_current_revision()
    if revision is None:
        raise ValueError("the database was never migrated")
    return revision


def is_at_head(settings: Settings, engine: Engine) -> bool:
    """Whether the database has the schema that this code was written for."""
    script = ScriptDirectory.from_config(alembic_config(settings))
    with engine.connect() as connection:
        context = MigrationContext.configure(connection)
        return set(context.get_current_heads()) == set(script.get_heads())
