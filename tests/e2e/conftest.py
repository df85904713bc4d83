"""One service for all end-to-end tests of a package that leave it running."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.stack import Up, write_model_and_text


@pytest.fixture(scope="package")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny model and its text, both on disk."""
    return write_model_and_text(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="package")
def up(
    no_litter: None, tmp_path_factory: pytest.TempPathFactory, inputs: tuple[Path, Path]
) -> Iterator[Up]:
    """`espalier up` on SQLite, the filesystem broker and a local artifact store."""
    up = Up(tmp_path_factory.mktemp("up") / "data", inputs[0].parent)
    yield up
    up.close()
