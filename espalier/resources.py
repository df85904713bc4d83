"""Jobs and what they report, as the server sends them. Fields a newer server adds are ignored."""

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
    calibration_tokens: int | None = None
    peak_memory_bytes: int
    storage_bytes: int
    time: EstimatedTime = EstimatedTime()


class Metrics(Resource):
    """Training curves: `columns[key][i]` was measured at optimizer step `step[i]`."""

    step: tuple[int, ...]
    columns: dict[str, tuple[float | None, ...]]

    def last(self, key: str) -> float | None:
        """The newest value of a curve, if it has any."""
        return next((value for value in reversed(self.columns[key]) if value is not None), None)
