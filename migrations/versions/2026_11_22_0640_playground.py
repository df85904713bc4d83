"""Prompts put to pruned models and their parents.

Revision ID: c7a05e81f2d4
Revises: 9e2b64c01fa7
Create Date: 2026-11-22 06:40:00+00:00

Expand, then migrate, then contract: the release before this one must still run on this schema.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "c7a05e81f2d4"
down_revision: str | None = "9e2b64c01fa7"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_QUEUED = sa.text("status = 'queued'")


def _id(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.String(length=40), nullable=False)


def upgrade() -> None:
    op.create_table(
        "playground_runs",
        *(_id("id"), _id("tenant_id"), _id("job_id"), _id("checkpoint_id")),
        sa.Column("prompt", sa.Text(), nullable=False),
        sa.Column("max_tokens", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("worker_id", sa.String(length=200), nullable=True),
        sa.Column("base_text", sa.Text(), nullable=True),
        sa.Column("pruned_text", sa.Text(), nullable=True),
        sa.Column("base_seconds", sa.Float(precision=53), nullable=True),
        sa.Column("pruned_seconds", sa.Float(precision=53), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "status IN ('queued', 'running', 'answered', 'failed')",
            name=op.f("ck_playground_runs_status"),
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name=op.f("fk_playground_runs_tenant_id_tenants")
        ),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_playground_runs_job_id_jobs")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_playground_runs")),
    )
    op.create_index(
        "ix_playground_runs_tenant_id_job_id", "playground_runs", ["tenant_id", "job_id"]
    )
    op.create_index(
        "ix_playground_runs_queued",
        "playground_runs",
        ["created_at"],
        postgresql_where=_QUEUED,
        sqlite_where=_QUEUED,
    )
    if op.get_bind().dialect.name == "postgresql":
        op.execute("ALTER TABLE playground_runs ENABLE ROW LEVEL SECURITY")
        op.execute(
            "CREATE POLICY of_tenant ON playground_runs TO espalier_tenant "
            "USING (tenant_id = current_setting('espalier.tenant', true))"
        )
        op.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON playground_runs TO espalier_tenant")


def downgrade() -> None:
    op.drop_index("ix_playground_runs_queued", table_name="playground_runs")
    op.drop_index("ix_playground_runs_tenant_id_job_id", table_name="playground_runs")
    op.drop_table("playground_runs")
