"""What clients send and get. Every field is described: the OpenAPI document is the client's manual.

`JobCreate` is the library's own `Recipe` with what only the service knows beside it, so a request
is validated by the class that the run consumes.
"""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, PlainSerializer, field_validator

from pruning.events import LayerWidths, Outcome, Phase
from pruning.recipe import Recipe
from registry.status import JobAction, JobStatus

MAX_METADATA_PAIRS = 32


def _rfc3339(at: datetime) -> str:
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


Timestamp = Annotated[datetime, PlainSerializer(_rfc3339, return_type=str, when_used="json")]


class Limits(BaseModel):
    """What ends a job that does not end by itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_runtime_s: int | None = Field(
        None, gt=0, le=2_592_000, description="Seconds from first start until the job fails."
    )
    max_attempts: int = Field(
        8, ge=1, le=100, description="Failed attempts before the job fails for good."
    )


class JobCreate(Recipe):
    """A pruning job: the recipe, and what the service needs to know about the job."""

    name: str | None = Field(None, max_length=200, description="A name for people; not unique.")
    metadata: dict[str, str] = Field(
        default_factory=dict,
        max_length=MAX_METADATA_PAIRS,
        description="Your own labels: at most 32 pairs, keys of 64 and values of 512 characters.",
    )
    priority: int = Field(0, ge=-100, le=100, description="Higher starts earlier.")
    limits: Limits = Field(Limits(), description="What ends a job that does not end by itself.")

    @field_validator("metadata")
    @classmethod
    def _bounded(cls, metadata: dict[str, str]) -> dict[str, str]:
        for key, value in metadata.items():
            if not 1 <= len(key) <= 64 or len(value) > 512:
                raise ValueError("keys have 1 to 64 characters, values at most 512")
        return metadata

    @property
    def recipe(self) -> Recipe:
        """The run's description alone, every default filled."""
        return Recipe.model_construct(**{name: getattr(self, name) for name in Recipe.model_fields})


class PauseRequest(BaseModel):
    """How to pause."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    checkpoint: Literal["save", "latest"] = Field(
        "save",
        description="`save` stops at the next boundary; `latest` at once, falling back on the last "
        "checkpoint, which must exist.",
    )


class Read(BaseModel):
    """Base of what is answered."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")


class Queue(Read):
    """Where a queued job stands."""

    position: int | None = Field(description="1 is next; null unless queued.")
    ahead_seconds: float | None = Field(
        description="Estimated seconds of work ahead; null when there is nothing to estimate from."
    )


class Progress(Read):
    """How far a job is. Counts are of the last event the worker reported."""

    fraction: float = Field(ge=0, le=1, description="Share of the work done, by training tokens.")
    increments_done: int = Field(description="Committed prune-and-recover cycles.")
    increments_planned: int | None = Field(description="All cycles; null until the run has begun.")
    params_start: int | None = Field(description="Parameters of the base model.")
    params_now: int | None = Field(description="Parameters of the model as it is now.")
    params_target: int | None = Field(description="Parameters to reach.")
    tokens_seen: int = Field(description="Training tokens seen since the start of the job.")
    tokens_per_s: float | None = Field(description="Training speed of the last steps.")
    estimate_available: bool = Field(description="Whether `eta_seconds` means something yet.")
    eta_seconds: float | None = Field(description="Estimated seconds until the end.")
    updated_at: Timestamp | None = Field(description="When the worker last reported progress.")


class WorkerRead(Read):
    """Who runs a job now."""

    id: str = Field(description="The worker's name.")
    gpu: str | None = Field(description="Its accelerator; null on a CPU or when not reported.")
    lease_until: Timestamp | None = Field(description="Until when the worker owns the job.")


class Transition(Read):
    """One change of status."""

    status: JobStatus = Field(description="The status entered.")
    phase: Phase | None = Field(description="The phase at that moment, if any.")
    at: Timestamp = Field(description="When.")
    message: str | None = Field(description="Why, in words.")


class JobResult(Read):
    """What a succeeded job left."""

    checkpoint: str = Field(description="Id of the final checkpoint.")
    params: int = Field(description="Its parameters, tied ones counted once.")
    size_bytes: int = Field(description="Bytes of its files.")
    reduction: float | None = Field(description="Share of the base model's parameters removed.")
    eval: dict[str, dict[str, float | None]] = Field(
        description="Its measurements after recovery, by suite and metric."
    )
    pruned: dict[str, dict[str, float | None]] = Field(
        {}, description="The same of the model as cut, before its last training."
    )
    baseline: dict[str, dict[str, float | None]] = Field(description="The same of the base model.")


class JobError(Read):
    """Why a job failed."""

    code: str = Field(description="The kind of failure, for programs.")
    message: str = Field(description="What happened, in words.")
    param: str | None = Field(None, description="The recipe field at fault.")
    retryable: bool = Field(False, description="Whether trying again unchanged may help.")
    attempt: int | None = Field(None, description="The attempt that failed.")
    hint: str | None = Field(None, description="What would have been allowed.")
    log_tail_url: str | None = Field(None, description="Where the end of the log can be read.")


class JobLinks(Read):
    """Where to go on."""

    self: str = Field(description="This job.")
    events: str = Field(description="Its events, as pages.")
    stream: str = Field(description="Its events, as server-sent events.")
    metrics: str = Field(description="Its training curves.")
    widths: str = Field(description="Its layer widths over the increments.")
    checkpoints: str = Field(description="Its checkpoints.")
    evaluations: str = Field(description="Its evaluations.")
    ui: str = Field(description="Its page in the dashboard.")


class JobRead(Read):
    """A pruning job."""

    id: str = Field(description="`job_` and 32 hexadecimal digits; ids sort by creation.")
    object: Literal["prune.job"] = Field("prune.job", description="Always `prune.job`.")
    version: int = Field(description="Grows with every change; also the ETag.")
    name: str | None = Field(description="The name given at creation.")
    status: JobStatus = Field(description="What can be done with the job.")
    phase: Phase | None = Field(description="What a running job is doing.")
    status_reason: str | None = Field(description="Why the job is in this status, in words.")
    outcome: Outcome | None = Field(description="How a succeeded job ended.")
    allowed_actions: list[JobAction] = Field(description="What may be asked of it now.")
    created_at: Timestamp = Field(description="When it was created.")
    queued_at: Timestamp | None = Field(description="When it last entered the queue.")
    started_at: Timestamp | None = Field(description="When a worker first took it.")
    finished_at: Timestamp | None = Field(description="When it ended.")
    deadline_at: Timestamp | None = Field(description="When it fails if it has not ended.")
    priority: int = Field(description="Higher starts earlier.")
    queue: Queue = Field(description="Where it stands in the queue.")
    progress: Progress = Field(description="How far it is.")
    attempt: int = Field(description="How many times a worker has taken it.")
    max_attempts: int = Field(description="Failed attempts before it fails for good.")
    worker: WorkerRead | None = Field(description="Who runs it now.")
    latest_checkpoint: str | None = Field(description="Id of the last committed checkpoint.")
    best_checkpoint: str | None = Field(description="Id of the checkpoint with the best quality.")
    resolved: dict[str, JsonValue] = Field(
        description="What simple forms, defaults and `auto` became: the whole recipe under "
        "`recipe`, and, once a run has begun, revisions, data fingerprint and versions."
    )
    result: JobResult | None = Field(description="What a succeeded job left.")
    error: JobError | None = Field(description="Why a failed job failed.")
    status_transitions: list[Transition] = Field(description="Every change of status, in order.")
    spec: dict[str, JsonValue] = Field(description="The request as it was accepted.")
    metadata: dict[str, str] = Field(description="Your own labels.")
    links: JobLinks = Field(description="Where to go on.")


class JobDryRun(Read):
    """What `POST /v1/jobs?dry_run=true` would have stored."""

    object: Literal["prune.job.dry_run"] = Field("prune.job.dry_run", description="The kind.")
    valid: Literal[True] = Field(True, description="An invalid request is answered with 422.")
    resolved: dict[str, JsonValue] = Field(description="The recipe with every default filled.")


class EventRead(Read):
    """One thing that happened to a job."""

    id: str = Field(description="`evt_` and 32 hexadecimal digits.")
    object: Literal["prune.job.event"] = Field("prune.job.event", description="The kind.")
    job: str = Field(description="Id of the job.")
    seq: int = Field(description="Gap-free number within the job, from 1; the cursor.")
    type: str = Field(description="Such as `job.started`, `increment.started`, `eval.completed`.")
    level: Literal["info", "warning", "error"] = Field(description="How much it matters.")
    data: dict[str, JsonValue] = Field(description="Details, by type.")
    created_at: Timestamp = Field(description="When it was recorded.")


class FileRead(Read):
    """One file of a checkpoint."""

    path: str = Field(description="Its name inside the checkpoint.")
    size: int = Field(description="Bytes.")
    sha256: str = Field(description="Hexadecimal digest of its content; also its ETag.")
    url: str = Field(description="Where to download it.")


class EvaluationRead(Read):
    """One measured number and how it was measured."""

    id: str = Field(description="`eval_` and 32 hexadecimal digits.")
    object: Literal["evaluation"] = Field("evaluation", description="The kind.")
    checkpoint: str | None = Field(description="The checkpoint measured; null for the base model.")
    increment: int = Field(description="0 is the base model.")
    stage: Literal["base", "pruned", "recovered"] = Field(
        description="Of the base model, after a cut and untrained, or after recovery."
    )
    tokens_seen: int | None = Field(description="Training tokens seen when it was measured.")
    suite: str = Field(description="Such as `perplexity` or `speed`.")
    metric: str = Field(description="What was measured.")
    value: float | None = Field(description="The number; null when it is not finite.")
    stderr: float | None = Field(description="Its standard error, when known.")
    n: int | None = Field(description="Over how many samples.")
    protocol: dict[str, JsonValue] = Field(description="How: device, lengths, dtype and the like.")
    created_at: Timestamp = Field(description="When it was recorded.")


class CheckpointEvaluation(Read):
    """A measurement inside a checkpoint."""

    metric: str = Field(description="What was measured.")
    value: float | None = Field(description="The number; null when it is not finite.")
    stderr: float | None = Field(description="Its standard error, when known.")
    n: int | None = Field(description="Over how many samples.")


class CheckpointRead(Read):
    """A model a job has published."""

    id: str = Field(description="`ckpt_` and 32 hexadecimal digits.")
    object: Literal["checkpoint"] = Field("checkpoint", description="The kind.")
    job: str = Field(description="The job that made it.")
    increment: int = Field(description="After which increment.")
    step: int = Field(description="Optimizer steps since the start of the job.")
    parent: str | None = Field(description="The checkpoint before it.")
    params: int = Field(description="Parameters, tied ones counted once.")
    size_bytes: int = Field(description="Bytes of the published files.")
    dtype: str = Field(description="Of the stored weights.")
    widths: list[LayerWidths] = Field(description="The sizes of each decoder layer.")
    evaluations: dict[str, CheckpointEvaluation] = Field(
        description="Measurements after recovery, by suite."
    )
    baseline_ratio: float | None = Field(
        description="Held-out perplexity over that of the base model."
    )
    sha256: str = Field(description="Digest of its manifest, which holds the digest of each file.")
    files: list[FileRead] = Field(description="What to download.")
    resumable: bool = Field(description="Whether the training state is kept beside it.")
    status: Literal["committed", "deleted"] = Field(description="Whether it can be downloaded.")
    pinned: bool = Field(description="Kept whatever the retention says.")
    created_at: Timestamp = Field(description="When it was committed.")
    fence: int = Field(description="Fencing token of the attempt that committed it.")


class Metrics(Read):
    """Training curves as columns, down-sampled to at most `max_points`."""

    object: Literal["prune.job.metrics"] = Field("prune.job.metrics", description="The kind.")
    job: str = Field(description="Id of the job.")
    step: list[int] = Field(description="Optimizer steps: the row index of every column.")
    columns: dict[str, list[float | None]] = Field(
        description="One list per key, as long as `step`; null where a value is not finite."
    )
    total_points: int = Field(description="Points stored before down-sampling.")


class WidthsRead(Read):
    """Layer widths over the increments: the numbers of the dashboard's heatmap."""

    object: Literal["prune.job.widths"] = Field("prune.job.widths", description="The kind.")
    job: str = Field(description="Id of the job.")
    increments: list[int] = Field(description="0 is the base model.")
    params: list[int | None] = Field(description="Parameters after each of `increments`.")
    layers: list[list[LayerWidths]] = Field(
        description="`layers[i][l]`: sizes of decoder layer `l` after `increments[i]`."
    )


class JobPage(Read):
    """One page of jobs."""

    object: Literal["list"] = Field("list", description="Always `list`.")
    data: list[JobRead] = Field(description="The jobs, in the order asked for.")
    has_more: bool = Field(description="Whether a page follows.")
    first_id: str | None = Field(description="Id of the first job of this page.")
    last_id: str | None = Field(description="Pass it as `after` to get the next page.")


class EventPage(Read):
    """One page of events, ascending."""

    object: Literal["list"] = Field("list", description="Always `list`.")
    data: list[EventRead] = Field(description="The events.")
    has_more: bool = Field(description="Whether a page follows.")
    last_seq: int | None = Field(description="Pass it as `after` to get the next page.")


class CheckpointList(Read):
    """The checkpoints of a job, oldest first."""

    object: Literal["list"] = Field("list", description="Always `list`.")
    data: list[CheckpointRead] = Field(description="The checkpoints.")
    has_more: Literal[False] = Field(False, description="The list is whole.")


class EvaluationList(Read):
    """Evaluations, oldest first."""

    object: Literal["list"] = Field("list", description="Always `list`.")
    data: list[EvaluationRead] = Field(description="The evaluations.")
    has_more: Literal[False] = Field(False, description="The list is whole.")


class FileList(Read):
    """The files of a checkpoint."""

    object: Literal["list"] = Field("list", description="Always `list`.")
    data: list[FileRead] = Field(description="The files, by path.")
    has_more: Literal[False] = Field(False, description="The list is whole.")


class ProblemRead(Read):
    """An error, RFC 9457."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(description="Names the kind of problem.")
    title: str = Field(description="The kind of problem in words.")
    status: int = Field(description="The HTTP status.")
    detail: str = Field(description="What was wrong this time.")
    instance: str = Field(description="The path asked for.")
    code: str = Field(description="The kind of problem, for programs.")
    param: str | None = Field(description="The first field at fault.")
    errors: list[dict[str, JsonValue]] = Field(description="Every field at fault.")
    retryable: bool = Field(description="Whether the same request may succeed later.")
    request_id: str = Field(description="Names this request in the server's log.")


class Check(Read):
    """One readiness check."""

    status: Literal["ok", "degraded", "failed"] = Field(description="How it stands.")
    detail: str | None = Field(None, description="What is wrong.")


class Readiness(Read):
    """Whether this process can serve."""

    status: Literal["ok", "degraded", "failed"] = Field(description="The worst of the checks.")
    checks: dict[str, Check] = Field(description="Each check by name.")


class Health(Read):
    """Whether this process is alive."""

    status: Literal["ok"] = Field("ok", description="Always `ok`.")


class Version(Read):
    """What is running."""

    version: str = Field(description="Version of Espalier.")
    python: str = Field(description="Version of Python.")
