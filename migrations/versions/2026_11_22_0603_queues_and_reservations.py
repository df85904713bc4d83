"""Queues in the order in which they are served, and storage set aside for jobs.

Revision ID: d4e1a90c7b52
Revises: 5d0c7a3be914
Create Date: 2026-11-22 06:03:00+00:00

Expand, then migrate, then contract: the release before this one must still run on this schema.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "d4e1a90c7b52"
down_revision: str | None = "5d0c7a3be914"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    # With a default of the database's own: the release before this one does not know the column.
    op.add_column(
        "jobs", sa.Column("reserved_bytes", sa.BigInteger(), nullable=False, server_default="0")
    )
    op.create_index(
        "ix_jobs_waiting",
        "jobs",
        ["queue", "priority", "queued_at"],
        postgresql_where=sa.text("status = 'queued'"),
        sqlite_where=sa.text("status = 'queued'"),
    )
    op.create_index(
        "ix_outbox_sent",
        "outbox",
        ["sent_at"],
        postgresql_where=sa.text("sent_at IS NOT NULL"),
        sqlite_where=sa.text("sent_at IS NOT NULL"),
    )
    op.drop_index("ix_jobs_queued", table_name="jobs")


def downgrade() -> None:
    op.create_index(
        "ix_jobs_queued",
        "jobs",
        ["priority", "queued_at"],
        postgresql_where=sa.text("status = 'queued'"),
        sqlite_where=sa.text("status = 'queued'"),
    )
    op.drop_index("ix_outbox_sent", table_name="outbox")
    op.drop_index("ix_jobs_waiting", table_name="jobs")
    op.drop_column("jobs", "reserved_bytes")
