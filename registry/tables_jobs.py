"""Rows of jobs: what was asked for, who held it, what came of it and what it reported."""

from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, Enum, ForeignKey, Index, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column, relationship

from registry.column_types import Id, Sha256
from registry.status import JobStatus
from registry.tables_base import IS_LEASED, IS_QUEUED, Base, partial


class Job(Base):
    """What a user asked for, and how far it has come.

    `recipe` is the resolved long form that runs, `spec` the request as it was written, `resolved`
    what the run found (revision, fingerprint, versions), `estimate` what was foretold of it.
    `fence` counts leases ever granted or taken away: a write that carries an older one changes
    nothing.
    """

    __tablename__ = "jobs"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    name: Mapped[str | None] = mapped_column(String(200))
    model: Mapped[str] = mapped_column(Text)
    spec: Mapped[dict[str, Any]]
    recipe: Mapped[dict[str, Any]]
    resolved: Mapped[dict[str, Any] | None]
    job_metadata: Mapped[dict[str, Any]] = mapped_column("metadata", default=dict)
    priority: Mapped[int] = mapped_column(default=0)
    queue: Mapped[str] = mapped_column(String(64), default="default")
    reserved_bytes: Mapped[int] = mapped_column(default=0, server_default="0")
    max_attempts: Mapped[int]
    max_runtime_seconds: Mapped[float | None]

    status: Mapped[JobStatus] = mapped_column(
        Enum(
            JobStatus,
            name="status",
            native_enum=False,
            create_constraint=True,
            length=16,
            values_callable=lambda statuses: [status.value for status in statuses],
        )
    )
    phase: Mapped[str | None] = mapped_column(String(32))
    status_reason: Mapped[str | None] = mapped_column(Text)
    outcome: Mapped[str | None] = mapped_column(String(32))
    error: Mapped[dict[str, Any] | None]
    result: Mapped[dict[str, Any] | None]
    estimate: Mapped[dict[str, Any] | None]
    version: Mapped[int] = mapped_column(default=1)
    last_event_seq: Mapped[int] = mapped_column(default=0)

    fence: Mapped[int] = mapped_column(default=0)
    lease_owner: Mapped[str | None] = mapped_column(String(200))
    lease_until: Mapped[datetime | None]
    attempt: Mapped[int] = mapped_column(default=0)
    failures: Mapped[int] = mapped_column(default=0)
    not_before: Mapped[datetime]
    deadline_at: Mapped[datetime | None]
    pause_mode: Mapped[str | None] = mapped_column(String(16))
    hinted_at: Mapped[datetime | None]
    num_hints: Mapped[int] = mapped_column(default=0)

    increments_done: Mapped[int] = mapped_column(default=0)
    increments_planned: Mapped[int | None]
    head_checkpoint_id: Mapped[str | None] = mapped_column(Id)
    best_checkpoint_id: Mapped[str | None] = mapped_column(Id)
    params_start: Mapped[int | None]
    params_now: Mapped[int | None]
    params_target: Mapped[int | None]
    step: Mapped[int] = mapped_column(default=0)
    tokens_seen: Mapped[int] = mapped_column(default=0)
    tokens_planned: Mapped[int | None]
    tokens_per_second: Mapped[float | None]
    eta_seconds: Mapped[float | None]
    progress_at: Mapped[datetime | None]

    created_at: Mapped[datetime]
    queued_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    deleted_at: Mapped[datetime | None]

    attempts: Mapped[list["JobAttempt"]] = relationship(
        lazy="raise", order_by="JobAttempt.fence", viewonly=True
    )

    __table_args__ = (
        CheckConstraint(
            f"({IS_LEASED}) = (lease_owner IS NOT NULL) "
            "AND (lease_owner IS NULL) = (lease_until IS NULL)",
            name="lease_matches_status",
        ),
        CheckConstraint("increments_done >= 0 AND failures >= 0 AND fence >= 0", name="counts"),
        Index("ix_jobs_tenant_id_created_at_id", "tenant_id", "created_at", "id"),
        partial("ix_jobs_waiting", "queue", "priority", "queued_at", where=IS_QUEUED),
        partial("ix_jobs_leased", "lease_until", where=IS_LEASED),
        partial("ix_jobs_deadline", "deadline_at", where="finished_at IS NULL"),
    )


class JobAttempt(Base):
    """One lease of a job, and how it ended; its log is stored after that."""

    __tablename__ = "job_attempts"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    fence: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    attempt: Mapped[int]
    worker_id: Mapped[str] = mapped_column(String(200))
    started_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    end_cause: Mapped[str | None] = mapped_column(String(32))
    exit_code: Mapped[int | None]
    message: Mapped[str | None] = mapped_column(Text)
    log_tail: Mapped[str | None] = mapped_column(Text)
    log_sha256: Mapped[str | None] = mapped_column(ForeignKey("blobs.sha256"), index=True)
    log_bytes: Mapped[int | None]
    energy_joules: Mapped[float | None]


class Increment(Base):
    """The history of commits: each increment once, in order, under a fence that never falls."""

    __tablename__ = "increments"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    idx: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    fence: Mapped[int]
    checkpoint_id: Mapped[str] = mapped_column(ForeignKey("checkpoints.id"))
    parent_checkpoint_id: Mapped[str | None] = mapped_column(Id)
    manifest_sha256: Mapped[str] = mapped_column(Sha256)
    params_before: Mapped[int]
    params_after: Mapped[int]
    widths: Mapped[list[Any]]
    step: Mapped[int]
    num_tokens: Mapped[int]
    committed_at: Mapped[datetime]


class Evaluation(Base):
    """One measured number, null where it was not finite.

    `checkpoint_id` is null for the base model, and until the commit. `rows` are the outcomes it is
    the mean of, by `pruning.paired`.
    """

    __tablename__ = "evaluations"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    checkpoint_id: Mapped[str | None] = mapped_column(ForeignKey("checkpoints.id"), index=True)
    fence: Mapped[int]
    increment: Mapped[int]
    stage: Mapped[str] = mapped_column(String(16))
    num_tokens: Mapped[int]
    suite: Mapped[str] = mapped_column(String(64))
    metric: Mapped[str] = mapped_column(String(64))
    value: Mapped[float | None]
    stderr: Mapped[float | None]
    num_samples: Mapped[int | None]
    protocol: Mapped[dict[str, Any]]
    rows: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime]

    __table_args__ = (UniqueConstraint("job_id", "increment", "stage", "suite", "metric"),)


class MetricPoint(Base):
    """A batch of consecutive optimizer steps under one lease: `columns` holds one list per key."""

    __tablename__ = "metric_points"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    fence: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    first_step: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    last_step: Mapped[int]
    columns: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]


class JobEvent(Base):
    """What happened to a job, numbered 1, 2, 3, … without a gap."""

    __tablename__ = "job_events"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    id: Mapped[str] = mapped_column(Id, unique=True)
    type: Mapped[str] = mapped_column(String(64))
    level: Mapped[str] = mapped_column(String(8), default="info")
    data: Mapped[dict[str, Any]]
    fence: Mapped[int]
    created_at: Mapped[datetime]
