"""`python -m espalier` is the `espalier` command."""

from espalier.cli import app

app()
