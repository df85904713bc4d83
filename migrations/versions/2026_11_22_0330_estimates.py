"""Keep what was foretold of a job.

Revision ID: 7d1f0c2ab4e6
Revises: 51b7fed92b50
Create Date: 2026-11-22 03:30:00+00:00

Expand, then migrate, then contract: the release before this one must still run on this schema.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "7d1f0c2ab4e6"
down_revision: str | None = "51b7fed92b50"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.add_column(
        "jobs",
        sa.Column(
            "estimate", sa.JSON().with_variant(postgresql.JSONB(), "postgresql"), nullable=True
        ),
    )


def downgrade() -> None:
    op.drop_column("jobs", "estimate")
