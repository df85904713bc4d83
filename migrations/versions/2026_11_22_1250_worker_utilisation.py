"""How busy the devices of a worker are.

Revision ID: 8e14c2a97b60
Revises: 5d90b7e3c1a8
Create Date: 2026-11-22 12:50:00+00:00

Expand, then migrate, then contract: the release before this one must still run on this schema.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "8e14c2a97b60"
down_revision: str | None = "5d90b7e3c1a8"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("workers", sa.Column("utilisation", sa.Float(precision=53), nullable=True))


def downgrade() -> None:
    op.drop_column("workers", "utilisation")
