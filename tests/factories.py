"""Rows and files for tests, made through the registry's own functions where one makes them."""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from pruning.events import StepFinished
from pruning.recipe import Recipe
from registry import api_keys, events, jobs, metrics
from registry.db import database_now
from registry.ids import new_id
from registry.status import JobStatus
from registry.storage import LocalStore
from registry.tables import (
    Blob,
    Checkpoint,
    CheckpointFile,
    Evaluation,
    Increment,
    Job,
)

SMALL_REQUEST: dict[str, Any] = {
    "model": "org/tiny",
    "target": "30%",
    "data": {"train": {"kind": "inline", "documents": ["Some text."]}},
}
LAYERS = 30


@dataclass(frozen=True)
class Holder:
    """A tenant and the secret of one of its keys."""

    tenant_id: str
    key_id: str
    secret: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.secret}"}


def make_holder(
    session: Session, tenant: str = "default", scopes: tuple[str, ...] = api_keys.SCOPES
) -> Holder:
    """An API key of a tenant."""
    row, secret = api_keys.create(session, api_keys.get_or_create_tenant(session, tenant), scopes)
    return Holder(tenant_id=row.tenant_id, key_id=row.id, secret=secret)


def make_job(session: Session, tenant_id: str, **fields: Any) -> Job:
    """A queued job of the small request."""
    request = {**SMALL_REQUEST, **fields.pop("request", {})}
    job = jobs.create(
        session,
        tenant_id=tenant_id,
        recipe=Recipe.model_validate(request),
        spec=request,
        **fields,
    )
    return jobs.get(session, tenant_id, job.id)


def start_job(session: Session, job: Job, *, increments: int = 3, tokens: int = 300_000) -> None:
    """As if a worker had leased the job and opened its model."""
    now = database_now(session)
    job.fence, job.attempt, job.started_at = job.fence + 1, job.attempt + 1, job.started_at or now
    job.lease_owner, job.lease_until = "cpu0@test", now
    jobs.transition(session, job, JobStatus.RUNNING)
    base = widths(0)
    job.resolved = {
        "model_revision": "0" * 40,
        "model_type": "llama",
        "widths": base,
        "device": "cpu",
        "data_fingerprint": "sha256:00",
    }
    job.params_start, job.params_now, job.params_target = 134_515_008, 134_515_008, 110_000_000
    job.increments_planned, job.tokens_planned = increments, tokens
    found = {
        "num_parameters": job.params_start,
        "target_num_parameters": job.params_target,
        "num_increments": increments,
        "num_tokens": tokens,
    }
    events.append(session, job, "job.validated", found)
    make_evaluation(session, job, increment=0, stage="base", value=24.31, tokens=0)


def widths(increment: int, layers: int = LAYERS) -> list[dict[str, int]]:
    """Plausible widths: the middle layers lose most."""
    rows = []
    for layer in range(layers):
        loss = 0.11 * increment * (0.35 + math.sin(math.pi * layer / (layers - 1)) ** 2)
        groups = 3 if loss < 0.25 else 2
        rows.append(
            {
                "intermediate_size": max(32, round(1536 * (1 - loss) / 32) * 32),
                "num_attention_heads": 3 * groups,
                "num_key_value_heads": groups,
            }
        )
    return rows


def make_steps(
    session: Session,
    job: Job,
    *,
    first: int,
    count: int,
    tokens_per_step: int = 4096,
    least_loss: float = 3.1,
) -> None:
    """Optimizer steps with a falling loss."""
    steps = [
        StepFinished(
            step=step,
            num_tokens=step * tokens_per_step,
            loss=least_loss + 0.9 * math.exp(-step / 40) + 0.05 * math.sin(step * 1.7),
            learning_rate=2e-4,
            grad_norm=1.0,
            tokens_per_second=2480.0,
            increment=job.increments_done + 1,
        )
        for step in range(first, first + count)
    ]
    metrics.append(session, job.id, job.fence, metrics.as_columns(steps))
    job.step = first + count - 1
    job.tokens_seen = job.step * tokens_per_step
    job.tokens_per_second, job.eta_seconds = 2480.0, 187.0
    job.progress_at = database_now(session)
    job.version += 1


def make_evaluation(
    session: Session,
    job: Job,
    *,
    increment: int,
    stage: str,
    value: float,
    tokens: int,
    suite: str = "perplexity",
    metric: str = "perplexity",
) -> Evaluation:
    """One measurement and its event."""
    row = Evaluation(
        id=new_id("eval"),
        job_id=job.id,
        fence=job.fence,
        increment=increment,
        stage=stage,
        num_tokens=tokens,
        suite=suite,
        metric=metric,
        value=value,
        num_samples=64,
        protocol={"context_length": 512, "device": "cpu"},
        created_at=database_now(session),
    )
    session.add(row)
    said = {"increment": increment, "stage": stage, "suite": suite, "metric": metric}
    events.append(session, job, "eval.completed", {**said, "value": value})
    return row


def cut(session: Session, job: Job, increment: int) -> None:
    """As if a worker had reported the cut of an increment."""
    before = job.params_now or 0
    job.params_now = round(134_515_008 - 8_200_000 * increment)
    data = {
        "increment": increment,
        "num_tokens": job.tokens_seen,
        "num_parameters_before": before,
        "num_parameters": job.params_now,
    }
    events.append(session, job, "prune.step", data)
    value = 24.31 * (1.9 + 0.5 * increment)
    make_evaluation(
        session, job, increment=increment, stage="pruned", value=value, tokens=job.tokens_seen
    )


def make_checkpoint(
    session: Session,
    store: LocalStore,
    job: Job,
    directory: Path,
    *,
    increment: int = 1,
    files: dict[str, bytes] | None = None,
    size_bytes: int | None = None,
    final: bool = False,
) -> Checkpoint:
    """A committed checkpoint whose files are really in the store; `size_bytes` if not theirs."""
    contents = files or {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 4096}
    now = database_now(session)
    row = Checkpoint(
        id=new_id("ckpt"),
        tenant_id=job.tenant_id,
        job_id=job.id,
        increment=increment,
        fence=job.fence,
        parent_id=job.head_checkpoint_id,
        step=job.step,
        num_tokens=job.tokens_seen,
        params=job.params_now or 1000,
        size_bytes=size_bytes or sum(map(len, contents.values())),
        dtype="bfloat16",
        widths=widths(increment),
        manifest_sha256=hashlib.sha256(str(increment).encode()).hexdigest(),
        final=final,
        resumable=True,
        created_at=now,
    )
    session.add(row)
    session.flush()
    for path, content in contents.items():
        add_file(session, store, row, directory, path, content)
    history = Increment(
        job_id=job.id,
        idx=increment,
        fence=job.fence,
        checkpoint_id=row.id,
        parent_checkpoint_id=row.parent_id,
        manifest_sha256=row.manifest_sha256,
        params_before=job.params_start or 1000,
        params_after=row.params,
        widths=row.widths,
        step=row.step,
        num_tokens=row.num_tokens,
        committed_at=now,
    )
    session.add(history)
    job.increments_done = increment
    job.head_checkpoint_id = job.best_checkpoint_id = row.id
    job.version += 1
    said = {"checkpoint": row.id, "increment": increment, "num_parameters": row.params}
    events.append(session, job, "checkpoint.created", {**said, "num_bytes": row.size_bytes})
    return row


def add_file(
    session: Session,
    store: LocalStore,
    checkpoint: Checkpoint,
    directory: Path,
    path: str,
    content: bytes,
) -> None:
    """One file of a checkpoint, its bytes stored."""
    source = directory / hashlib.sha256(content).hexdigest()
    source.write_bytes(content)
    blob = store.put_file(source)
    if session.get(Blob, blob.sha256) is None:
        now = database_now(session)
        session.add(Blob(sha256=blob.sha256, size_bytes=blob.num_bytes, created_at=now))
        session.flush()
    session.add(
        CheckpointFile(
            checkpoint_id=checkpoint.id, path=path, sha256=blob.sha256, size_bytes=blob.num_bytes
        )
    )


def succeed(session: Session, job: Job) -> None:
    """End a running job well."""
    job.outcome = "target_reached"
    job.result = {
        "checkpoint": job.head_checkpoint_id,
        "params": job.params_now,
        "size_bytes": 1,
        "reduction": 0.18,
        "eval": {"perplexity": {"perplexity": 29.0}},
        "baseline": {"perplexity": {"perplexity": 24.31}},
    }
    jobs.transition(session, job, JobStatus.SUCCEEDED, data={"outcome": job.outcome})
