"""Stored credentials, and webhooks of one job.

Revision ID: 5c1e7a90d3f2
Revises: e4a71d9c0b58
Create Date: 2026-11-22 06:00:00+00:00

Expand, then migrate, then contract: the release before this one must still run on this schema.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "5c1e7a90d3f2"
down_revision: str | None = "e4a71d9c0b58"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.create_table(
        "credentials",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("tenant_id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=True),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("sealed", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name=op.f("fk_credentials_tenant_id_tenants")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_credentials")),
    )
    op.create_index(op.f("ix_credentials_tenant_id"), "credentials", ["tenant_id"])
    with op.batch_alter_table("webhooks") as webhooks:
        webhooks.add_column(sa.Column("job_id", sa.String(length=40), nullable=True))
        webhooks.create_foreign_key(op.f("fk_webhooks_job_id_jobs"), "jobs", ["job_id"], ["id"])
        webhooks.create_index(op.f("ix_webhooks_job_id"), ["job_id"])


def downgrade() -> None:
    with op.batch_alter_table("webhooks") as webhooks:
        webhooks.drop_index(op.f("ix_webhooks_job_id"))
        webhooks.drop_constraint(op.f("fk_webhooks_job_id_jobs"), type_="foreignkey")
        webhooks.drop_column("job_id")
    op.drop_table("credentials")
