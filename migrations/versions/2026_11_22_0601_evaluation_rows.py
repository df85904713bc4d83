"""Outcomes of rows beside an evaluation, so that two models are compared row by row.

Revision ID: 5d0c7a3be914
Revises: 5c1e7a90d3f2
Create Date: 2026-11-22 06:01:00+00:00

Expand, then migrate, then contract: the release before this one must still run on this schema.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "5d0c7a3be914"
down_revision: str | None = "5c1e7a90d3f2"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("evaluations", sa.Column("rows", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("evaluations", "rows")
