"""What the server sends, as types. Fields a newer server adds are ignored."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

TERMINAL_STATUSES = frozenset({"succeeded", "failed", "cancelled"})


class Resource(BaseModel):
    """Base of everything the server sends."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class FieldProblem(Resource):
    """One field at fault."""

    param: str | None = None
    code: str | None = None
    message: str | None = None


class Problem(Resource):
    """An RFC 9457 problem."""

    status: int
    title: str = "problem"
    detail: str | None = None
    code: str = "unknown"
    param: str | None = None
    errors: tuple[FieldProblem, ...] = ()
    allowed_actions: tuple[str, ...] = ()
    retryable: bool = False
    request_id: str | None = None


class Progress(Resource):
    """How far a job is. Counts are of parameters and training tokens."""

    fraction: float = 0.0
    increments_done: int = 0
    increments_planned: int | None = None
    params_start: int | None = None
    params_now: int | None = None
    params_target: int | None = None
    tokens_seen: int = 0
    tokens_per_s: float | None = None
    estimate_available: bool = False
    eta_seconds: float | None = None


class JobError(Resource):
    """Why a job failed."""

    code: str
    message: str
    param: str | None = None
    hint: str | None = None
    retryable: bool = False
    attempt: int | None = None
    log_tail_url: str | None = None


class Job(Resource):
    """A job as `GET /v1/jobs/{id}` shows it."""

    id: str
    name: str | None = None
    version: int = 1
    status: str
    phase: str | None = None
    status_reason: str | None = None
    outcome: str | None = None
    allowed_actions: tuple[str, ...] = ()
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    progress: Progress = Progress()
    attempt: int = 0
    latest_checkpoint: str | None = None
    best_checkpoint: str | None = None
    resolved: dict[str, Any] | None = None
    result: dict[str, Any] | None = None
    error: JobError | None = None
    spec: dict[str, Any] = Field(default_factory=dict)
    metadata: dict[str, Any] = Field(default_factory=dict)
    links: dict[str, str] = Field(default_factory=dict)

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen unless someone asks for a retry."""
        return self.status in TERMINAL_STATUSES


class JobPage(Resource):
    """One page of jobs, newest first unless asked otherwise."""

    data: tuple[Job, ...]
    has_more: bool = False


class Event(Resource):
    """An immutable record of a job; `seq` has no gaps within a job."""

    seq: int
    type: str
    level: str = "info"
    created_at: datetime
    data: dict[str, Any] = Field(default_factory=dict)


class EventPage(Resource):
    """Events in ascending order."""

    data: tuple[Event, ...]
    has_more: bool = False


class CheckpointFile(Resource):
    """One file of a checkpoint: its path inside it, length in bytes and sha256."""

    path: str
    size: int
    sha256: str


class Size(Resource):
    """A size a model may be pruned to; `sparsity` is of the prunable parameters."""

    params: int
    size_bytes: int
    sparsity: float = 0.0


class BaseModelSize(Resource):
    """The base model of an estimate."""

    model_type: str
    revision: str | None = None
    params: int
    prunable_params: int
    size_bytes: int


class EstimatedTime(Resource):
    """How long a job would take, where finished jobs tell."""

    estimate_available: bool = False
    seconds: float | None = None


class Estimate(Resource):
    """What a job would lead to."""

    model: BaseModelSize
    targets: tuple[Size, ...]
    floor: Size
    increments: tuple[int, ...]
    tokens: int | None = None
    peak_memory_bytes: int
    storage_bytes: int
    time: EstimatedTime = EstimatedTime()


class Checkpoint(Resource):
    """A model that a job published."""

    id: str
    job: str
    increment: int
    parent: str | None = None
    params: int
    size_bytes: int
    dtype: str | None = None
    sha256: str | None = Field(None, description="Digest of the checkpoint's manifest.json.")
    created_at: datetime


class CheckpointPage(Resource):
    """Checkpoints in the order of their increments."""

    data: tuple[Checkpoint, ...]


class FilePage(Resource):
    """The files of a checkpoint."""

    data: tuple[CheckpointFile, ...]


class File(Resource):
    """An uploaded file; `offset` bytes of it have arrived."""

    id: str
    name: str
    status: str
    size: int | None = None
    offset: int = 0
    sha256: str | None = None
    created_at: datetime


class FilesPage(Resource):
    """One page of uploaded files, newest first."""

    data: tuple[File, ...]
    has_more: bool = False


class DownloadUrl(Resource):
    """A URL that needs no key until `expires_at`; an archive has no digest of its own."""

    url: str
    expires_at: datetime
    size: int
    sha256: str | None = None


class Evaluation(Resource):
    """One measured number; `stage` is base, pruned (cut and untrained) or recovered."""

    checkpoint: str | None = None
    increment: int
    stage: str
    suite: str
    metric: str
    value: float | None = Field(None, description="None where it was not finite.")
    stderr: float | None = None
    n: int | None = None
    protocol: dict[str, Any] = Field(default_factory=dict)


class EvaluationPage(Resource):
    """The evaluations of a job, in the order they were measured."""

    data: tuple[Evaluation, ...]


class Metrics(Resource):
    """Training curves: `columns[key][i]` was measured at optimizer step `step[i]`."""

    step: tuple[int, ...]
    columns: dict[str, tuple[float | None, ...]]

    def last(self, key: str) -> float | None:
        """The newest value of a curve, if it has any."""
        return next((value for value in reversed(self.columns[key]) if value is not None), None)


class ApiKey(Resource):
    """An API key; `secret` is known only right after it was made."""

    id: str
    name: str | None = None
    prefix: str
    scopes: tuple[str, ...]
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None
    secret: str | None = None


class ApiKeyPage(Resource):
    """Every API key of a tenant, oldest first."""

    data: tuple[ApiKey, ...]


class Usage(Resource):
    """What was used in a time, and is used now; a quota that is None does not limit."""

    since: datetime
    until: datetime
    jobs: dict[str, int]
    tokens: int
    worker_seconds: float
    queued_now: int
    running_now: int
    storage_bytes_now: int
    quotas: dict[str, int | None] = Field(default_factory=dict)


class ModelAlias(Resource):
    """A name that moves from version to version; `revision` counts its moves."""

    alias: str
    version: int
    revision: int


class Model(Resource):
    """A registered model."""

    id: str
    name: str
    description: str | None = None
    last_version: int = 0
    aliases: tuple[ModelAlias, ...] = ()


class ModelPage(Resource):
    """One page of registered models, by name."""

    data: tuple[Model, ...]
    has_more: bool = False


class ModelVersion(Resource):
    """A checkpoint under a number that never changes."""

    model: str
    version: int
    checkpoint: str
    description: str | None = None
    created_at: datetime


class ModelVersionPage(Resource):
    """The versions of a model, newest first."""

    data: tuple[ModelVersion, ...]


class Point(Resource):
    """A checkpoint as size and quality."""

    checkpoint: str
    job: str
    increment: int
    params: int
    size_bytes: int
    perplexity: float
    baseline_ratio: float | None = None
    on_frontier: bool = False


class ComparedJob(Resource):
    """One of the jobs compared."""

    id: str
    name: str | None = None
    model: str
    status: str
    params_start: int | None = None
    params_now: int | None = None
    seconds: float | None = None
    points: tuple[Point, ...] = ()


class Comparison(Resource):
    """Jobs side by side."""

    jobs: tuple[ComparedJob, ...]
    differences: dict[str, list[Any]] = Field(default_factory=dict)


class Frontier(Resource):
    """The measured checkpoints of a base model."""

    model: str
    points: tuple[Point, ...]
