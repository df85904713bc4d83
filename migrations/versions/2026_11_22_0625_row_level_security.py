"""Row-level security on Postgres: requests see only the rows of their tenant.

Revision ID: 9e2b64c01fa7
Revises: d4e1a90c7b52
Create Date: 2026-11-22 06:25:00+00:00

Expand, then migrate, then contract: the release before this one must still run on this schema, and
does, since it keeps the role that owns the tables.
"""

from collections.abc import Sequence

from alembic import op
from sqlalchemy import text

revision: str = "9e2b64c01fa7"
down_revision: str | None = "d4e1a90c7b52"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_MINE = "current_setting('espalier.tenant', true)"
_OF_TENANT = f"tenant_id = {_MINE}"


def _through(parent: str, column: str, key: str = "id") -> str:
    """Rows whose parent row can be seen: its own policy decides."""
    return f"EXISTS (SELECT FROM {parent} AS parent WHERE parent.{key} = {column})"


_POLICIES = {
    "tenants": f"id = {_MINE}",
    **dict.fromkeys(
        (
            *("api_keys", "audit_log", "credentials", "files", "idempotency_keys", "jobs"),
            *("registered_models", "checkpoints", "webhooks"),
        ),
        _OF_TENANT,
    ),
    **{
        table: _through("jobs", f"{table}.job_id")
        for table in (
            *("job_attempts", "job_events", "job_files", "metric_points", "evaluations"),
            "increments",
        )
    },
    "outbox": _through("jobs", "outbox.key"),
    "checkpoint_files": _through("checkpoints", "checkpoint_files.checkpoint_id"),
    "webhook_deliveries": _through("webhooks", "webhook_deliveries.webhook_id"),
    "model_versions": _through("registered_models", "model_versions.model_id"),
    "model_aliases": _through("registered_models", "model_aliases.model_id"),
}
# Of the whole installation: a digest and a size; who works here.
_SHARED = {"blobs": "SELECT, INSERT, UPDATE", "workers": "SELECT"}


def upgrade() -> None:
    if op.get_bind().dialect.name != "postgresql":
        return
    if not op.get_bind().scalar(text("SELECT 1 FROM pg_roles WHERE rolname = 'espalier_tenant'")):
        # A role belongs to the whole server. Where this user may not make one, an operator does:
        # CREATE ROLE espalier_tenant NOLOGIN; GRANT espalier_tenant TO <this user>;
        op.execute("CREATE ROLE espalier_tenant NOLOGIN")
        op.execute("GRANT espalier_tenant TO CURRENT_USER")
    op.execute("GRANT USAGE ON SCHEMA public TO espalier_tenant")
    for table, condition in _POLICIES.items():
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        op.execute(f"CREATE POLICY of_tenant ON {table} TO espalier_tenant USING ({condition})")
        op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO espalier_tenant")
    for table, rights in _SHARED.items():
        op.execute(f"GRANT {rights} ON {table} TO espalier_tenant")
    # Seen with the rights of its owner: how long the queue is may be known, not who is in it.
    op.execute(
        "CREATE VIEW queue_places AS "
        "SELECT queue, priority, queued_at FROM jobs WHERE status = 'queued'"
    )
    op.execute("GRANT SELECT ON queue_places TO espalier_tenant")
    # A table that is added later can be used at once; tests/registry/test_tenancy.py asks for its
    # policy.
    op.execute(
        "ALTER DEFAULT PRIVILEGES IN SCHEMA public "
        "GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO espalier_tenant"
    )


def downgrade() -> None:
    if op.get_bind().dialect.name != "postgresql":
        return
    op.execute(
        "ALTER DEFAULT PRIVILEGES IN SCHEMA public REVOKE ALL ON TABLES FROM espalier_tenant"
    )
    op.execute("DROP VIEW queue_places")
    for table in _POLICIES:
        op.execute(f"DROP POLICY of_tenant ON {table}")
        op.execute(f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY")
    op.execute("REVOKE ALL ON ALL TABLES IN SCHEMA public FROM espalier_tenant")
    op.execute("REVOKE USAGE ON SCHEMA public FROM espalier_tenant")
