"""What the devices of an attempt have used.

Revision ID: 5d90b7e3c1a8
Revises: c7a05e81f2d4
Create Date: 2026-11-22 09:25:00+00:00

Expand, then migrate, then contract: the release before this one must still run on this schema.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "5d90b7e3c1a8"
down_revision: str | None = "c7a05e81f2d4"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("job_attempts", sa.Column("energy_joules", sa.Float(precision=53), nullable=True))


def downgrade() -> None:
    op.drop_column("job_attempts", "energy_joules")
