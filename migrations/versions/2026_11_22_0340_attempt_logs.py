"""Keep the logs of attempts in the artifact store.

Revision ID: 9c04d5e17f32
Revises: 7d1f0c2ab4e6
Create Date: 2026-11-22 03:40:00+00:00

Expand, then migrate, then contract: the release before this one must still run on this schema.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "9c04d5e17f32"
down_revision: str | None = "7d1f0c2ab4e6"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    with op.batch_alter_table("job_attempts") as batch:
        batch.add_column(sa.Column("log_sha256", sa.String(length=64), nullable=True))
        batch.add_column(sa.Column("log_bytes", sa.BigInteger(), nullable=True))
        batch.create_foreign_key(
            op.f("fk_job_attempts_log_sha256_blobs"), "blobs", ["log_sha256"], ["sha256"]
        )
        batch.create_index(op.f("ix_job_attempts_log_sha256"), ["log_sha256"])


def downgrade() -> None:
    with op.batch_alter_table("job_attempts") as batch:
        batch.drop_index(op.f("ix_job_attempts_log_sha256"))
        batch.drop_constraint(op.f("fk_job_attempts_log_sha256_blobs"), type_="foreignkey")
        batch.drop_column("log_bytes")
        batch.drop_column("log_sha256")
