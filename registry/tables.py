"""All tables, in one place: whoever needs one imports it from here, so that all are known to all.

Rows only: what may happen to them is in the module named after each. `Job` is the one mutable row;
its status changes only through `registry.jobs.transition`, its lease only through
`registry.leases`. Everything below it is append-only.
"""

from registry.tables_artifacts import (
    Blob,
    Checkpoint,
    CheckpointFile,
    JobFile,
    ModelAlias,
    ModelVersion,
    RegisteredModel,
    UploadedFile,
)
from registry.tables_base import (
    IS_LEASED,
    IS_QUEUED,
    Base,
)
from registry.tables_jobs import (
    Evaluation,
    Increment,
    Job,
    JobAttempt,
    JobEvent,
    MetricPoint,
)
from registry.tables_service import (
    ApiKey,
    AuditEntry,
    Credential,
    IdempotencyKey,
    OutboxMessage,
    PlaygroundRun,
    Tenant,
    Webhook,
    WebhookDelivery,
    Worker,
)

__all__ = [
    "IS_LEASED",
    "IS_QUEUED",
    "ApiKey",
    "AuditEntry",
    "Base",
    "Blob",
    "Checkpoint",
    "CheckpointFile",
    "Credential",
    "Evaluation",
    "IdempotencyKey",
    "Increment",
    "Job",
    "JobAttempt",
    "JobEvent",
    "JobFile",
    "MetricPoint",
    "ModelAlias",
    "ModelVersion",
    "OutboxMessage",
    "PlaygroundRun",
    "RegisteredModel",
    "Tenant",
    "UploadedFile",
    "Webhook",
    "WebhookDelivery",
    "Worker",
]
