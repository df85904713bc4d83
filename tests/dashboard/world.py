"""A tenant with some of everything, for tests that look at every page.

`say` writes every string that a user, a worker or a run may set: hostile ones for some tests.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from pruning.paired import encode_rows
from registry import api_keys, events, files, jobs, models, playground, webhooks
from registry.attempts import log_name
from registry.db import SessionFactory, database_now, transaction
from registry.settings import Settings
from registry.status import JobStatus
from registry.storage import LocalStore
from registry.tables import Checkpoint, Job, JobAttempt, JobEvent, Tenant
from registry.workers import Identity, beat
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

Say = Callable[[str], str]
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


def plain(text: str) -> str:
    return text


def furnish(
    factory: SessionFactory,
    settings: Settings,
    store: LocalStore,
    holder: Holder,
    directory: Path,
    say: Say = plain,
) -> World:
    """Make the tenant's jobs, models, keys, webhooks and workers."""
    with transaction(factory) as session:
        finished = _finished(session, store, holder, directory, say, quality=1.0)
        other = _finished(session, store, holder, directory, say, quality=0.9)
        other.name = say("smollm2-85m-flap")
        other.recipe = {**other.recipe, "method": "adapt_pruner", "seed": 7}
        running = _running(session, store, holder, directory, settings, say)
        failed = _failed(session, holder, say)
        _job(session, holder, "smollm2-100m, next", say)
        _play(session, holder, finished, say)
        model = _register(session, holder, finished, say)
        webhook = _administer(session, holder, running, say)
        checkpoint = finished.head_checkpoint_id
        assert checkpoint is not None
        return World(finished.id, other.id, running.id, failed.id, checkpoint, model, webhook)


def _job(session: Session, holder: Holder, name: str, say: Say) -> Job:
    request = {
        "model": "HuggingFaceTB/SmolLM2-135M",
        "target": "85M",
        "data": {
            "train": [
                {"name": "docs", "source": {"kind": "inline", "documents": [say("Some text.")]}},
                {"name": "code", "source": {"kind": "inline", "documents": [say("def f(): 1")]}},
            ]
        },
    }
    metadata = {say("team")[:60]: say("nlp")}
    return make_job(session, holder.tenant_id, name=say(name), request=request, metadata=metadata)


def _finished(
    session: Session,
    store: LocalStore,
    holder: Holder,
    directory: Path,
    say: Say,
    *,
    quality: float,
) -> Job:
    job = _job(session, holder, "smollm2-85m", say)
    start_job(session, job, increments=CUTS, tokens=CUTS * 40 * 4096)
    job.params_target = 134_515_008 - 8_200_000 * CUTS
    assert job.resolved is not None
    job.resolved = {**job.resolved, "device": say("cpu"), "model_type": say("llama")}
    _attempt(session, job, say, ended="finished")
    for increment in range(1, CUTS + 1):
        _increment(session, store, job, directory, increment, quality)
        _mix(session, job, increment, say)
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
    make_steps(session, job, first=job.step + 1, count=40)
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
    make_checkpoint(session, store, job, directory, increment=increment, files=content)


def _mix(session: Session, job: Job, increment: int, say: Say) -> None:
    share = 0.5 + 0.2 * math.sin(increment)
    weights = {say("docs"): share, say("code"): 1 - share}
    data = {"increment": increment, "num_tokens": job.tokens_seen, "weights": weights}
    events.append(session, job, "mixture.changed", {**data, "losses": {}, "step": job.step})


def _attempt(
    session: Session, job: Job, say: Say, *, ended: str | None, message: str | None = None
) -> JobAttempt:
    now = database_now(session)
    row = JobAttempt(
        job_id=job.id,
        fence=job.fence,
        attempt=job.attempt,
        worker_id=say("gpu0@rack-3"),
        started_at=now - timedelta(seconds=340),
        ended_at=now if ended else None,
        end_cause=ended,
        exit_code=-9 if ended == "killed" else None,
        message=say(message) if message else None,
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
    say: Say,
) -> Job:
    """A job that was killed once and goes on."""
    job = _job(session, holder, "smollm2-85m, second try", say)
    start_job(session, job, increments=CUTS, tokens=CUTS * 40 * 4096)
    job.params_target = 134_515_008 - 8_200_000 * CUTS
    _phase(session, job, "calibrating", 1)
    _increment(session, store, job, directory, 1)
    first = _attempt(session, job, say, ended="killed", message="killed by SIGKILL")
    error = {"cause": "killed", "code": say("internal"), "message": say("killed by SIGKILL")}
    jobs.requeue(session, job, event="job.retrying", reason=say("killed by SIGKILL"), data=error)
    job.fence, job.attempt = job.fence + 1, job.attempt + 1
    job.lease_owner, job.lease_until = "cpu0@test", database_now(session)
    jobs.transition(session, job, JobStatus.RUNNING)
    second = _attempt(session, job, say, ended=None)
    for increment in (2, 3):
        _phase(session, job, "pruning", increment)
        _phase(session, job, "training", increment)
        _increment(session, store, job, directory, increment)
        _mix(session, job, increment, say)
    cut(session, job, 4)
    make_steps(session, job, first=job.step + 1, count=14)
    events.append(session, job, "warning", {"code": say("x"), "message": say("slow disk")})
    _spread(session, job, first, second)
    path = settings.data_dir / log_name(job.id, second.fence)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (f"12:00:{n % 60:02} step {n} loss {3.5 - n / 400:.3f}" for n in range(120))
    path.write_text("\n".join([*lines, say("a line of the log"), ""]))
    return job


def _phase(session: Session, job: Job, phase: str, increment: int) -> None:
    job.phase = phase
    events.append(session, job, "phase.changed", {"phase": phase, "increment": increment})


def _spread(session: Session, job: Job, first: JobAttempt, second: JobAttempt) -> None:
    """Move what happened at once apart, ten seconds an event, so that there is a timeline."""
    now = database_now(session)
    session.flush()
    rows = session.query(JobEvent).filter(JobEvent.job_id == job.id).order_by(JobEvent.seq).all()
    start = now - timedelta(seconds=10 * len(rows))
    for index, row in enumerate(rows):
        row.created_at = start + timedelta(seconds=10 * index)
    at = {row.type: row.created_at for row in reversed(rows)}
    job.created_at = job.started_at = start
    first.started_at, first.ended_at = at["job.started"], at["job.retrying"]
    second.started_at = max(row.created_at for row in rows if row.type == "job.started")


def _failed(session: Session, holder: Holder, say: Say) -> Job:
    job = _job(session, holder, "qwen3-too-small", say)
    start_job(session, job)
    _attempt(session, job, say, ended="error", message="the target cannot be reached")
    job.error = {
        "code": "target_unreachable",
        "message": say("the constraints leave at least 41,200,000 parameters"),
        "param": say("target"),
        "hint": say("raise the target, or protect fewer layers"),
        "retryable": False,
        "attempt": 1,
    }
    jobs.transition(session, job, JobStatus.FAILED, reason=say("target_unreachable"))
    return job


def _register(session: Session, holder: Holder, job: Job, say: Say) -> str:
    models.create(
        session,
        tenant_id=holder.tenant_id,
        name="smollm2-small",
        description=say("Small enough for phones"),
    )
    model = models.get(session, holder.tenant_id, "smollm2-small", for_update=True)
    rows = session.query(Checkpoint).filter(Checkpoint.job_id == job.id)
    for row in rows.order_by(Checkpoint.increment)[2:4]:
        models.add_version(session, model, row.id, description=say(f"cut {row.increment}"))
    models.move_alias(session, model, "production", 1, revision=None)
    return model.name


def _play(session: Session, holder: Holder, job: Job, say: Say) -> None:
    assert job.head_checkpoint_id is not None
    row = playground.ask(
        session,
        holder.tenant_id,
        job.head_checkpoint_id,
        prompt=say("Why do gardeners prune their trees in winter?"),
        max_tokens=64,
    )
    row.status, row.worker_id = "answered", say("gpu0@rack-3")
    row.base_seconds, row.pruned_seconds = 2.31, 1.62
    row.base_text = say("In winter the tree rests, and a clean cut heals before the sap rises.")
    row.pruned_text = say("In winter the tree rests, and the cuts heal before spring.")


def _administer(session: Session, holder: Holder, job: Job, say: Say) -> str:
    tenant = session.get_one(Tenant, holder.tenant_id)
    api_keys.create(session, tenant, ["jobs:read"], name=say("watcher"))
    row, _ = webhooks.create(
        session,
        tenant_id=tenant.id,
        url="https://example.com/hook?" + say("q"),
        events=["job.succeeded", "job.failed"],
        master=b"m" * 32,
    )
    for status, code in (("delivered", 200), ("failed", 500)):
        sent = webhooks.add_delivery(session, row, "job.succeeded", {})
        sent.status, sent.status_code, sent.num_attempts = status, code, 1
        sent.error = say("answered 500") if code == 500 else None
    identity: dict[str, Any] = {"host": say("rack-3"), "pid": 4242, "version": say("0.1.0")}
    worker = Identity(id=say("gpu0@rack-3"), queues=(say("default"),), **identity)
    beat(session, worker, status="online", current_job_id=job.id)
    idle = Identity(id="cpu0@rack-4", queues=("default",), host="rack-4", pid=77, version="0.1.0")
    beat(session, idle, status="online", current_job_id=None)
    text = files.create(
        session, tenant_id=tenant.id, name=say("notes") + ".txt", num_bytes=3, sha256=None
    )
    text.status = "ready"
    return row.id
