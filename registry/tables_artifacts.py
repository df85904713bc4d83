"""Rows that name stored bytes: checkpoints, uploads, and the versions of registered models."""

from datetime import datetime
from typing import Any

from sqlalchemy import (
    CheckConstraint,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    String,
    Text,
    UniqueConstraint,
)
from sqlalchemy.orm import Mapped, mapped_column, relationship

from registry.column_types import Id, Sha256
from registry.tables_base import Base


class Checkpoint(Base):
    __tablename__ = "checkpoints"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    increment: Mapped[int]
    fence: Mapped[int]
    parent_id: Mapped[str | None] = mapped_column(ForeignKey("checkpoints.id"))
    step: Mapped[int]
    num_tokens: Mapped[int]
    params: Mapped[int]
    size_bytes: Mapped[int]
    dtype: Mapped[str] = mapped_column(String(16))
    widths: Mapped[list[Any]]
    manifest_sha256: Mapped[str] = mapped_column(Sha256)
    final: Mapped[bool] = mapped_column(default=False)
    resumable: Mapped[bool]
    status: Mapped[str] = mapped_column(String(16), default="committed")
    pinned: Mapped[bool] = mapped_column(default=False)
    created_at: Mapped[datetime]

    files: Mapped[list["CheckpointFile"]] = relationship(
        lazy="raise", order_by="CheckpointFile.path", viewonly=True
    )

    __table_args__ = (
        UniqueConstraint("job_id", "increment"),
        CheckConstraint("status IN ('committed', 'deleted')", name="status"),
    )


class CheckpointFile(Base):
    __tablename__ = "checkpoint_files"

    checkpoint_id: Mapped[str] = mapped_column(ForeignKey("checkpoints.id"), primary_key=True)
    path: Mapped[str] = mapped_column(String(512), primary_key=True)
    sha256: Mapped[str] = mapped_column(ForeignKey("blobs.sha256"), index=True)
    size_bytes: Mapped[int]


class Blob(Base):
    """Bytes in the artifact store, named by their sha256."""

    __tablename__ = "blobs"

    sha256: Mapped[str] = mapped_column(Sha256, primary_key=True)
    size_bytes: Mapped[int]
    status: Mapped[str] = mapped_column(String(16), default="stored")
    created_at: Mapped[datetime]

    __table_args__ = (CheckConstraint("status IN ('stored', 'deleting')", name="status"),)


class UploadedFile(Base):
    """Text a user sent; its bytes are in the artifact store once it is ready."""

    __tablename__ = "files"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    name: Mapped[str] = mapped_column(String(200))
    status: Mapped[str] = mapped_column(String(16), default="uploading")
    size_bytes: Mapped[int | None]
    declared_sha256: Mapped[str | None] = mapped_column(Sha256)
    sha256: Mapped[str | None] = mapped_column(ForeignKey("blobs.sha256"), index=True)
    created_at: Mapped[datetime]
    ready_at: Mapped[datetime | None]
    deleted_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint("status IN ('uploading', 'ready', 'deleted')", name="status"),
        Index("ix_files_tenant_id_created_at_id", "tenant_id", "created_at", "id"),
    )


class JobFile(Base):
    """A file that a job reads."""

    __tablename__ = "job_files"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    file_id: Mapped[str] = mapped_column(ForeignKey("files.id"), primary_key=True, index=True)


class RegisteredModel(Base):
    """A name for a line of versions."""

    __tablename__ = "registered_models"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    name: Mapped[str] = mapped_column(String(100))
    description: Mapped[str | None] = mapped_column(Text)
    last_version: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[datetime]

    __table_args__ = (UniqueConstraint("tenant_id", "name"),)


class ModelVersion(Base):
    """A checkpoint under a number that never changes; the checkpoint is pinned."""

    __tablename__ = "model_versions"

    model_id: Mapped[str] = mapped_column(ForeignKey("registered_models.id"), primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    checkpoint_id: Mapped[str] = mapped_column(ForeignKey("checkpoints.id"), index=True)
    description: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime]


class ModelAlias(Base):
    """A name that moves from version to version; `revision` counts its moves."""

    __tablename__ = "model_aliases"

    model_id: Mapped[str] = mapped_column(Id, primary_key=True)
    alias: Mapped[str] = mapped_column(String(64), primary_key=True)
    version: Mapped[int]
    revision: Mapped[int] = mapped_column(default=1)
    updated_at: Mapped[datetime]

    __table_args__ = (
        ForeignKeyConstraint(
            ["model_id", "version"], ["model_versions.model_id", "model_versions.version"]
        ),
    )
