"""The migrations build exactly the tables of the code, and take them down again."""

from alembic import command
from sqlalchemy import inspect

from registry.db import create_engine
from registry.migrate import alembic_config, is_at_head, migrate
from registry.settings import Settings
from registry.tables import Base


def test_up_and_down_and_up_again(empty: Settings) -> None:
    config = alembic_config(empty)
    engine = create_engine(empty)
    assert not is_at_head(engine)
    migrate(empty)
    command.check(config)
    assert set(Base.metadata.tables) < set(inspect(engine).get_table_names())
    command.downgrade(config, "base")
    assert set(inspect(engine).get_table_names()) == {"alembic_version"}
    migrate(empty)
    migrate(empty)
    assert is_at_head(engine)
    engine.dispose()
