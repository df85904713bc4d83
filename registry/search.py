"""Finding jobs, checkpoints and models by a part of what they are called."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import ColumnElement, or_, select
from sqlalchemy.orm import Session

from registry.tables import Checkpoint, Job, ModelVersion, RegisteredModel

Kind = Literal["job", "checkpoint", "model"]


@dataclass(frozen=True, kw_only=True)
class Hit:
    """Something found: its name for people, and the text that was searched."""

    kind: Kind
    id: str
    name: str
    detail: str
    created_at: datetime


def search(session: Session, tenant_id: str, text: str, *, limit: int) -> list[Hit]:
    """What has `text` in its id, name, base model, description or digest; newest first.

    At most `limit` of each kind, whatever the case of the letters.
    """
    found = [
        *_jobs(session, tenant_id, text, limit),
        *_checkpoints(session, tenant_id, text, limit),
        *_models(session, tenant_id, text, limit),
    ]
    return sorted(found, key=lambda hit: (hit.created_at, hit.id), reverse=True)


def _contains(text: str, *columns: Any) -> ColumnElement[bool]:
    return or_(*(column.icontains(text, autoescape=True) for column in columns))


def _jobs(session: Session, tenant_id: str, text: str, limit: int) -> list[Hit]:
    query = (
        select(Job)
        .where(
            Job.tenant_id == tenant_id,
            Job.deleted_at.is_(None),
            _contains(text, Job.id, Job.name, Job.model),
        )
        .order_by(Job.created_at.desc(), Job.id.desc())
        .limit(limit)
    )
    return [
        Hit(
            kind="job",
            id=job.id,
            name=job.name or job.id,
            detail=f"{job.model}, {job.status}",
            created_at=job.created_at,
        )
        for job in session.scalars(query)
    ]


def _checkpoints(session: Session, tenant_id: str, text: str, limit: int) -> list[Hit]:
    query = (
        select(Checkpoint, Job)
        .join(Job, Job.id == Checkpoint.job_id)
        .where(
            Checkpoint.tenant_id == tenant_id,
            Checkpoint.status == "committed",
            _contains(text, Checkpoint.id, Checkpoint.manifest_sha256, Job.name, Job.model),
        )
        .order_by(Checkpoint.created_at.desc(), Checkpoint.id.desc())
        .limit(limit)
    )
    return [
        Hit(
            kind="checkpoint",
            id=row.id,
            name=f"{job.name or job.id}, increment {row.increment}",
            detail=f"{job.model}, {row.params:,} parameters",
            created_at=row.created_at,
        )
        for row, job in session.execute(query)
    ]


def _models(session: Session, tenant_id: str, text: str, limit: int) -> list[Hit]:
    described = select(ModelVersion.model_id).where(
        _contains(text, ModelVersion.description, ModelVersion.checkpoint_id)
    )
    query = (
        select(RegisteredModel)
        .where(
            RegisteredModel.tenant_id == tenant_id,
            or_(
                _contains(text, RegisteredModel.name, RegisteredModel.description),
                RegisteredModel.id.in_(described),
            ),
        )
        .order_by(RegisteredModel.created_at.desc(), RegisteredModel.id.desc())
        .limit(limit)
    )
    return [
        Hit(
            kind="model",
            id=row.id,
            name=row.name,
            detail=row.description or "",
            created_at=row.created_at,
        )
        for row in session.scalars(query)
    ]
