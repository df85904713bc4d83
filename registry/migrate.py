"""Bringing a database to the newest schema, from an installed package too.

Alembic is imported where it works: a process that only asks which schema there is starts sooner
and is smaller without it.
"""

import re
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Engine, inspect, text

from registry.settings import Settings

if TYPE_CHECKING:
    from alembic.config import Config

_REVISION = re.compile(r'^(revision|down_revision)\b.* = "(\w+)"$', re.MULTILINE)


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
    with engine.connect() as connection:
        revision: str | None = None
        if inspect(connection).has_table("alembic_version"):
            revision = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    if revision is None:
        raise ValueError("the database was never migrated")
    return revision


def is_at_head(engine: Engine) -> bool:
    """Whether the database has the schema that this code was written for."""
    try:
        return current_revision(engine) == _head()
    except ValueError:
        return False


@cache
def _head() -> str:
    """The one revision that no other follows."""
    revisions: dict[str, set[str]] = {"revision": set(), "down_revision": set()}
    for path in files("migrations").joinpath("versions").iterdir():
        if path.name.endswith(".py"):
            for name, revision in _REVISION.findall(path.read_text(encoding="utf-8")):
                revisions[name].add(revision)
    [head] = revisions["revision"] - revisions["down_revision"]
    return head
