"""A tenant with some of everything, for tests that look at every page."""

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from sqlalchemy.orm import Session

from pruning.paired import encode_rows
from registry import events, jobs
from registry.attempts import log_name
from registry.db import SessionFactory, database_now, transaction
from registry.settings import Settings
from registry.status import JobStatus
from registry.storage import LocalStore
from registry.tables import Job, JobAttempt, JobEvent
from tests.dashboard.world_admin import WORKER, administer, play, register
from tests.factories import (
    Holder,
    cut,
    make_checkpoint,
    make_evaluation,
    make_job,
    make_steps,
    start_job,
    succeed,
)

CUTS = 6


@dataclass(frozen=True)
class World:
    """Where to look."""

    finished: str
    other: str
    running: str
    failed: str
    checkpoint: str
    model: str
    webhook: str

    @property
    def paths(self) -> dict[str, str]:
        """Every page by a name for its picture."""
        return {
            "overview": "/",
            "jobs": "/jobs",
            "job": f"/jobs/{self.finished}",
            "job-running": f"/jobs/{self.running}",
            "job-failed": f"/jobs/{self.failed}",
            "job-timeline": f"/jobs/{self.running}/timeline",
            "job-logs": f"/jobs/{self.running}/logs",
            "job-playground": f"/jobs/{self.finished}/playground",
            "job-recipe": f"/jobs/{self.finished}/recipe",
            "new-job": "/jobs/new",
            "new-job-again": f"/jobs/new?like={self.finished}",
            "compare-choice": "/compare",
            "compare": f"/compare?job={self.finished}&job={self.other}",
            "frontier": "/frontier",
            "models": f"/models?checkpoint={self.checkpoint}",
            "model": f"/models/{self.model}",
            "admin-keys": "/admin",
            "admin-webhooks": "/admin/webhooks",
            "admin-deliveries": f"/admin/webhooks/{self.webhook}",
            "admin-workers": "/admin/workers",
            "admin-usage": "/admin/usage",
            "admin-audit": "/admin/audit?verify=true",
        }


def furnish(
    factory: SessionFactory,
    settings: Settings,
    store: LocalStore,
    holder: Holder,
    directory: Path,
) -> World:
    """Make the tenant's jobs, models, keys, webhooks and workers."""
    with transaction(factory) as session:
        finished = _finished(session, store, holder, directory, quality=1.0)
        other = _finished(session, store, holder, directory, quality=0.9)
        other.name = "smollm2-85m, many cuts"
        other.recipe = {**other.recipe, "method": "adapt_pruner", "seed": 7}
        running = _running(session, store, holder, directory, settings)
        failed = _failed(session, holder)
        waiting = _job(session, holder, "smollm2-100m, next")
        waiting.queued_at = database_now(session) - timedelta(seconds=95)
        play(session, holder, finished)
        model = register(session, holder, finished)
        webhook = administer(session, holder, running)
        checkpoint = finished.head_checkpoint_id
        assert checkpoint is not None
        return World(finished.id, other.id, running.id, failed.id, checkpoint, model, webhook)


def _job(session: Session, holder: Holder, name: str) -> Job:
    request = {
        "model": "HuggingFaceTB/SmolLM2-135M",
        "target": "85M",
        "data": {
            "train": [
                {"name": "docs", "source": "HuggingFaceTB/cosmopedia:stories"},
                {"name": "code", "source": {"kind": "inline", "documents": ["def f(): 1"]}},
            ]
        },
    }
    metadata = {"team": "nlp"}
    return make_job(session, holder.tenant_id, name=name, request=request, metadata=metadata)


def _finished(
    session: Session,
    store: LocalStore,
    holder: Holder,
    directory: Path,
    *,
    quality: float,
) -> Job:
    job = _job(session, holder, "smollm2-85m")
    start_job(session, job, increments=CUTS, tokens=CUTS * 40 * 4096)
    job.params_target = 134_515_008 - 8_200_000 * CUTS
    assert job.resolved is not None
    job.resolved = {**job.resolved, "device": "cpu", "model_type": "llama"}
    attempt = _attempt(session, job, ended="finished")
    for increment in range(1, CUTS + 1):
        _mix(session, job, increment)
        _increment(session, store, job, directory, increment, quality)
    for metric, base, now in (
        ("prefill_tokens_per_second", 3100.0, 4025.0),
        ("decode_tokens_per_second", 31.2, 44.8 / quality),
    ):
        for increment, stage, value in ((0, "base", base), (CUTS, "recovered", now)):
            row = make_evaluation(
                session,
                job,
                increment=increment,
                stage=stage,
                value=value,
                tokens=job.tokens_seen,
                suite="speed",
                metric=metric,
            )
            row.checkpoint_id = job.head_checkpoint_id if increment else None
    _suite(session, job, quality)
    succeed(session, job)
    job.result = {**(job.result or {}), "seconds": 612.0 / quality}
    _spread(session, job, 15 / quality)
    attempt.started_at = job.created_at
    return job


def _suite(session: Session, job: Job, quality: float) -> None:
    drawn = random.Random(job.model + str(quality))
    right = [float(drawn.random() < 0.45 * quality) for _ in range(400)]
    row = make_evaluation(
        session,
        job,
        increment=CUTS,
        stage="recovered",
        value=sum(right) / len(right),
        tokens=job.tokens_seen,
        suite="arc_easy",
        metric="acc",
    )
    row.rows = encode_rows(right)


def _increment(
    session: Session,
    store: LocalStore,
    job: Job,
    directory: Path,
    increment: int,
    quality: float = 1.0,
) -> None:
    cut(session, job, increment)
    make_steps(session, job, first=job.step + 1, count=40, least_loss=3.1 + 4 * (1 - quality) / 3)
    value = 24.31 * (1 + 0.011 * increment**1.7 / quality**3)
    make_evaluation(
        session, job, increment=increment, stage="recovered", value=value, tokens=job.tokens_seen
    )
    content = {
        "config.json": b"{}",
        "model.safetensors": bytes(64) + job.id.encode() + bytes([increment]) * 4096,
    }
    if increment == CUTS:
        content["exports/gguf-q8_0/model.gguf"] = b"GGUF" + job.id.encode()
    bytes_in_bf16 = 2 * (job.params_now or 0)
    make_checkpoint(
        session,
        store,
        job,
        directory,
        increment=increment,
        files=content,
        size_bytes=bytes_in_bf16,
    )


def _mix(session: Session, job: Job, increment: int) -> None:
    share = 0.5 + 0.2 * math.sin(increment)
    weights = {"docs": share, "code": 1 - share}
    data = {"increment": increment, "num_tokens": job.tokens_seen, "weights": weights}
    events.append(session, job, "mixture.changed", {**data, "losses": {}, "step": job.step})


def _attempt(
    session: Session, job: Job, *, ended: str | None, message: str | None = None
) -> JobAttempt:
    now = database_now(session)
    row = JobAttempt(
        job_id=job.id,
        fence=job.fence,
        attempt=job.attempt,
        worker_id=WORKER,
        started_at=now - timedelta(seconds=340),
        ended_at=now if ended else None,
        end_cause=ended,
        exit_code=-9 if ended == "killed" else None,
        message=message if message else None,
    )
    session.add(row)
    session.flush()
    return row


def _running(
    session: Session,
    store: LocalStore,
    holder: Holder,
    directory: Path,
    settings: Settings,
) -> Job:
    """A job that was killed once and goes on."""
    job = _job(session, holder, "smollm2-85m, second try")
    start_job(session, job, increments=CUTS, tokens=CUTS * 40 * 4096)
    job.params_target = 134_515_008 - 8_200_000 * CUTS
    _phase(session, job, "calibrating", 1)
    _increment(session, store, job, directory, 1)
    first = _attempt(session, job, ended="killed", message="killed by SIGKILL")
    error = {"cause": "killed", "code": "internal", "message": "killed by SIGKILL"}
    jobs.requeue(session, job, event="job.retrying", reason="killed by SIGKILL", data=error)
    job.fence, job.attempt = job.fence + 1, job.attempt + 1
    job.lease_owner, job.lease_until = "cpu0@test", database_now(session)
    jobs.transition(session, job, JobStatus.RUNNING)
    second = _attempt(session, job, ended=None)
    for increment in (2, 3):
        _phase(session, job, "pruning", increment)
        _mix(session, job, increment)
        _phase(session, job, "training", increment)
        _increment(session, store, job, directory, increment)
    cut(session, job, 4)
    make_steps(session, job, first=job.step + 1, count=14)
    events.append(session, job, "warning", {"code": "x", "message": "slow disk"})
    at = _spread(session, job, 10)
    first.started_at, first.ended_at = at["job.started"][0], at["job.retrying"][0]
    second.started_at = at["job.started"][-1]
    path = settings.data_dir / log_name(job.id, second.fence)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (f"12:00:{n % 60:02} step {n} loss {3.5 - n / 400:.3f}" for n in range(120))
    path.write_text("\n".join([*lines, "a line of the log", ""]))
    return job


def _phase(session: Session, job: Job, phase: str, increment: int) -> None:
    job.phase = phase
    events.append(session, job, "phase.changed", {"phase": phase, "increment": increment})


def _spread(session: Session, job: Job, seconds: float) -> Mapping[str, list[datetime]]:
    """Move what happened at once apart, so that there is a timeline; its times by type of event."""
    now = database_now(session)
    session.flush()
    rows = session.query(JobEvent).filter(JobEvent.job_id == job.id).order_by(JobEvent.seq).all()
    start = now - timedelta(seconds=seconds * len(rows))
    times: dict[str, list[datetime]] = {}
    for index, row in enumerate(rows):
        row.created_at = start + timedelta(seconds=seconds * index)
        times.setdefault(row.type, []).append(row.created_at)
    job.created_at = job.started_at = start
    return times


def _failed(session: Session, holder: Holder) -> Job:
    job = _job(session, holder, "qwen3-too-small")
    start_job(session, job)
    _attempt(session, job, ended="error", message="the target cannot be reached")
    job.error = {
        "code": "target_unreachable",
        "message": "the constraints leave at least 41,200,000 parameters",
        "param": "target",
        "hint": "raise the target, or protect fewer layers",
        "retryable": False,
        "attempt": 1,
    }
    jobs.transition(session, job, JobStatus.FAILED, reason="target_unreachable")
    return job
