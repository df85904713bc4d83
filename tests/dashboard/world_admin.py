"""What a tenant has beside jobs: a model, a prompt, keys, webhooks, workers, an audit log."""

from datetime import timedelta

from sqlalchemy.orm import Session

from registry import api_keys, audit, files, models, playground, webhooks
from registry.db import database_now
from registry.tables import Checkpoint, Job, Tenant, Worker
from registry.workers import Identity, beat
from tests.factories import Holder

WORKER = "cpu0@rack-3"


def register(session: Session, holder: Holder, job: Job) -> str:
    models.create(
        session,
        tenant_id=holder.tenant_id,
        name="smollm2-small",
        description="Small enough for phones",
    )
    model = models.get(session, holder.tenant_id, "smollm2-small", for_update=True)
    rows = session.query(Checkpoint).filter(Checkpoint.job_id == job.id)
    for row in rows.order_by(Checkpoint.increment)[2:4]:
        models.add_version(session, model, row.id, description=f"cut {row.increment}")
    models.move_alias(session, model, "production", 1, revision=None)
    return model.name


def play(session: Session, holder: Holder, job: Job) -> None:
    assert job.head_checkpoint_id is not None
    row = playground.ask(
        session,
        holder.tenant_id,
        job.head_checkpoint_id,
        prompt="Why do gardeners prune their trees in winter?",
        max_tokens=64,
    )
    row.status, row.worker_id = "answered", WORKER
    row.base_seconds, row.pruned_seconds = 2.31, 1.62
    row.base_text = "In winter the tree rests, and a clean cut heals before the sap rises."
    row.pruned_text = "In winter the tree rests, and the cuts heal before spring."


def administer(session: Session, holder: Holder, job: Job) -> str:
    tenant = session.get_one(Tenant, holder.tenant_id)
    api_keys.create(session, tenant, ["jobs:read"], name="watcher")
    row, _ = webhooks.create(
        session,
        tenant_id=tenant.id,
        url="https://example.com/hooks/espalier",
        events=["job.succeeded", "job.failed"],
        master=b"m" * 32,
    )
    for status, code in (("delivered", 200), ("failed", 500)):
        sent = webhooks.add_delivery(session, row.id, "job.succeeded", {})
        sent.status, sent.status_code, sent.num_attempts, sent.next_at = status, code, 1, None
        sent.error = "answered 500" if code == 500 else None
    _work(session, job)
    _change(session, holder)
    text = files.create(session, tenant_id=tenant.id, name="notes.txt", num_bytes=3, sha256=None)
    text.status = "ready"
    return row.id


def _work(session: Session, job: Job) -> None:
    busy = Identity(id=WORKER, host="rack-3", pid=4242, version="0.1.0", queues=("default",))
    idle = Identity(id="cpu0@rack-4", host="rack-4", pid=77, version="0.1.0", queues=("default",))
    beat(session, busy, status="online", current_job_id=job.id, utilisation=0.93)
    beat(session, idle, status="online", current_job_id=None)
    for worker in session.query(Worker):
        worker.started_at = database_now(session) - timedelta(hours=31)


def _change(session: Session, holder: Holder) -> None:
    """What an audit log says of an ordinary morning."""
    for number, (action, about, status) in enumerate(
        (
            ("POST /v1/jobs", "/v1/jobs", 201),
            (
                "POST /v1/jobs/{job_id}/pause",
                "/v1/jobs/job_01a2021f1fcf7635bf714a92b2d8/pause",
                202,
            ),
            ("POST /jobs/{job_id}/{action}", "/jobs/job_01a2021f1fcf7635bf714a92b2d8/resume", 303),
            ("POST /v1/models", "/v1/models", 201),
            ("DELETE /v1/webhooks/{webhook_id}", "/v1/webhooks/wh_01a2", 404),
        )
    ):
        change = audit.Action(
            key_id=holder.key_id,
            action=action,
            object=about,
            status_code=status,
            request_id=f"req_{number:032x}",
            address="10.0.3.14",
        )
        audit.append(session, holder.tenant_id, change)
