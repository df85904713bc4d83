"""What clients send and get. Every field is described: the OpenAPI document is the client's manual.

`JobCreate` is the library's own `Recipe` with what only the service knows beside it, so a request
is validated by the class that the run consumes.
"""

from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from api.schemas.base import Read, StoredJson, Timestamp
from api.schemas.estimates import EstimateRead
from api.schemas.webhooks import WebhookCreate, WebhookSecretRead
from pruning.events import Outcome, Phase
from pruning.recipe import Recipe
from registry.status import JobAction, JobStatus

MAX_METADATA_PAIRS = 32


MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=64)]
MetadataValue = Annotated[str, StringConstraints(max_length=512)]
Metadata = Annotated[dict[MetadataKey, MetadataValue], Field(max_length=MAX_METADATA_PAIRS)]


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
    metadata: Metadata = Field(
        default_factory=dict,
        description="Your own labels: at most 32 pairs, keys of 64 and values of 512 characters.",
    )
    priority: int = Field(0, ge=-100, le=100, description="Higher starts earlier.")
    limits: Limits = Field(Limits(), description="What ends a job that does not end by itself.")
    webhook: WebhookCreate | None = Field(
        None, description="An address that hears of this job alone; the answer has its secret."
    )

    @cached_property
    def recipe(self) -> Recipe:
        """The run's description alone, every default filled."""
        return Recipe.model_construct(**{name: getattr(self, name) for name in Recipe.model_fields})


class LimitsUpdate(BaseModel):
    """Limits to change; what is absent stays."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_runtime_s: int | None = Field(
        None, gt=0, le=2_592_000, description="Seconds from creation until the job fails."
    )
    max_attempts: int = Field(8, ge=1, le=100, description="Failed attempts before it fails.")


class JobUpdate(BaseModel):
    """What shall change of a job; what is absent stays."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str | None = Field(None, max_length=200, description="A name for people.")
    metadata: Metadata = Field({}, description="Your own labels, replacing all there were.")
    priority: int = Field(0, ge=-100, le=100, description="Higher starts earlier.")
    limits: LimitsUpdate = Field(LimitsUpdate(), description="Limits to change.")

    @property
    def changes(self) -> dict[str, Any]:
        """What was written, by the names of the registry."""
        written = {name: getattr(self, name) for name in self.model_fields_set - {"limits"}}
        if "metadata" in written:
            written["job_metadata"] = written.pop("metadata")
        if "max_attempts" in self.limits.model_fields_set:
            written["max_attempts"] = self.limits.max_attempts
        if "max_runtime_s" in self.limits.model_fields_set:
            written["max_runtime_seconds"] = self.limits.max_runtime_s
        return written


class PauseRequest(BaseModel):
    """How to pause."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    checkpoint: Literal["save", "latest"] = Field(
        "save",
        description="`save` stops at the next boundary; `latest` at once, falling back on the last "
        "checkpoint, which must exist.",
    )


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
    seconds: float | None = Field(None, description="How long workers held the job.")


class JobEstimate(Read):
    """What was foretold when the job was created, and how wrong it was."""

    params: int = Field(description="Parameters of the smallest model it was to publish.")
    size_bytes: int = Field(description="Bytes of its weights.")
    increments: int = Field(description="Prune-and-recover cycles.")
    tokens: int | None = Field(description="Training tokens; null when the text was not known.")
    peak_memory_bytes: int = Field(description="Memory while training.")
    storage_bytes: int = Field(description="Bytes of all its checkpoints.")
    seconds: float | None = Field(description="Time; null when no finished job told how fast.")
    actual_seconds: float | None = Field(None, description="How long it took; null until it ended.")
    seconds_error: float | None = Field(
        None, description="Share by which `seconds` lay above (+) or below (-) `actual_seconds`."
    )
    actual_params: int | None = Field(None, description="What came out; null until it ended.")
    params_error: float | None = Field(None, description="The same share of `params`.")
    actual_tokens: int | None = Field(None, description="Tokens seen; null until it ended.")
    tokens_error: float | None = Field(None, description="The same share of `tokens`.")


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
    logs: str = Field(description="What its last attempt printed.")
    attempts: str = Field(description="Its attempts, with the log of each.")
    checkpoints: str = Field(description="Its checkpoints.")
    evaluations: str = Field(description="Its evaluations.")
    comparison: str = Field(description="Its model beside its parent and models of its size.")
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
    resolved: StoredJson = Field(
        description="What simple forms, defaults and `auto` became: the whole recipe under "
        "`recipe`, and, once a run has begun, revisions, data fingerprint and versions."
    )
    result: JobResult | None = Field(description="What a succeeded job left.")
    estimate: JobEstimate | None = Field(
        description="What was foretold at creation; null when the model could not be looked at."
    )
    error: JobError | None = Field(description="Why a failed job failed.")
    status_transitions: list[Transition] = Field(description="Every change of status, in order.")
    spec: StoredJson = Field(description="The request as it was accepted.")
    metadata: dict[str, str] = Field(description="Your own labels.")
    links: JobLinks = Field(description="Where to go on.")


class JobCreatedRead(JobRead):
    """A new job, with the webhook that was asked for in the same request."""

    webhook: WebhookSecretRead | None = Field(None, description="Its own, if it was asked for.")


class JobDryRun(Read):
    """What `POST /v1/jobs?dry_run=true` would have stored."""

    object: Literal["prune.job.dry_run"] = Field("prune.job.dry_run", description="The kind.")
    valid: Literal[True] = Field(True, description="An invalid request is answered with 422.")
    resolved: StoredJson = Field(description="The recipe with every default filled.")
    estimate: EstimateRead | None = Field(
        description="What it would lead to; null when the model cannot be looked at from here."
    )


class JobPage(Read):
    """One page of jobs."""

    object: Literal["list"] = Field("list", description="Always `list`.")
    data: list[JobRead] = Field(description="The jobs, in the order asked for.")
    has_more: bool = Field(description="Whether a page follows.")
    first_id: str | None = Field(description="Id of the first job of this page.")
    last_id: str | None = Field(description="Pass it as `after` to get the next page.")
