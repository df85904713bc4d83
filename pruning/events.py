"""What a run reports while it goes: typed values, upward only, one JSON line each.

The library calls `emit(event)`; the command line writes the lines to the pipe named by
`--events-fd`, and the worker that started it turns them into rows. Torch-free.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

Phase = Literal[
    "resolving",
    "loading",
    "calibrating",
    "pruning",
    "training",
    "evaluating",
    "exporting",
    "publishing",
]
Outcome = Literal["target_reached", "quality_floor", "budget_exhausted", "no_further_reduction"]
EvaluationStage = Literal["base", "pruned", "recovered"]
"""When a measurement was taken: of the base model, after a cut and untrained, or after recovery."""


class LayerWidths(BaseModel):
    """The sizes of one decoder layer, in Hugging Face's names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    num_experts: int | None = Field(
        None,
        exclude_if=lambda number: number is None,
        description="Of a layer whose MLP is one of experts; `intermediate_size` is that of each.",
    )


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    at: datetime = Field(default_factory=lambda: datetime.now(UTC))


class RunStarted(_Event):
    """What `auto`, simple forms and moving revisions became; emitted once the model is open."""

    type: Literal["run_started"] = "run_started"
    num_parameters: int
    num_prunable_parameters: int
    target_num_parameters: int
    num_increments: int
    num_tokens: int
    num_calibration_samples: int = Field(description="Of each cut.")
    calibration_sequence_length: int
    first_increment: int = Field(description="1, or the increment a resumed run goes on with.")
    model_revision: str | None
    model_type: str
    data_fingerprint: str
    widths: tuple[LayerWidths, ...]
    versions: dict[str, str]
    device: str


class PhaseChanged(_Event):
    type: Literal["phase_changed"] = "phase_changed"
    phase: Phase
    increment: int


class TextRead(_Event):
    """Said from time to time while text is tokenised, so that long silence means trouble."""

    type: Literal["text_read"] = "text_read"
    num_documents: int
    num_tokens: int


class TextMeasured(_Event):
    """Said from time to time while the model is measured for a cut."""

    type: Literal["text_measured"] = "text_measured"
    increment: int
    num_tokens: int = Field(description="Calibration text that the pass has gone over so far.")


class StepFinished(_Event):
    """One optimizer step."""

    type: Literal["step_finished"] = "step_finished"
    increment: int
    step: int = Field(
        description="Optimizer steps since the start of the run, over all increments."
    )
    num_tokens: int = Field(description="Training tokens seen since the start of the run.")
    loss: float
    learning_rate: float
    grad_norm: float
    tokens_per_second: float
    domain_weights: dict[str, float] | None = None


class MixtureChanged(_Event):
    """Dynamic batch loading weighted the domains anew, by these held-out losses."""

    type: Literal["mixture_changed"] = "mixture_changed"
    increment: int
    step: int
    num_tokens: int
    weights: dict[str, float]
    losses: dict[str, float] = Field(description="Nats per token.")


class PruneFinished(_Event):
    """One cut: what it left, before any training."""

    type: Literal["prune_finished"] = "prune_finished"
    increment: int
    num_tokens: int
    num_parameters_before: int
    num_parameters: int
    widths: tuple[LayerWidths, ...]


class EvaluationFinished(_Event):
    """One measured number, with the protocol it was measured by."""

    type: Literal["evaluation_finished"] = "evaluation_finished"
    increment: int = Field(description="0 is the base model.")
    stage: EvaluationStage
    num_tokens: int
    suite: str
    metric: str
    value: float
    stderr: float | None = None
    num_samples: int | None = None
    protocol: dict[str, str | int | float | bool | None] = Field(default_factory=dict)
    rows: str | None = Field(None, description="Outcome of each row, as `pruning.paired` has it.")


class IncrementFinished(_Event):
    """A checkpoint lies complete on disk under `directory`, relative to the run's output."""

    type: Literal["increment_finished"] = "increment_finished"
    increment: int
    step: int
    num_tokens: int
    num_parameters: int
    directory: str
    manifest_sha256: str
    final: bool
    outcome: Outcome | None = None


class RunWarning(_Event):
    """Something the user should know that did not stop the run."""

    type: Literal["warning"] = "warning"
    code: str
    message: str


class RunFinished(_Event):
    type: Literal["run_finished"] = "run_finished"
    outcome: Outcome
    num_parameters: int
    increment: int


class RunStopped(_Event):
    """The run ended at a boundary because it was asked to; it resumes from its last checkpoint."""

    type: Literal["run_stopped"] = "run_stopped"
    increment: int


class RunFailed(_Event):
    type: Literal["run_failed"] = "run_failed"
    code: str
    message: str
    param: str | None = None
    hint: str | None = None
    retryable: bool


Event = Annotated[
    RunStarted
    | PhaseChanged
    | TextRead
    | TextMeasured
    | StepFinished
    | MixtureChanged
    | PruneFinished
    | EvaluationFinished
    | IncrementFinished
    | RunWarning
    | RunFinished
    | RunStopped
    | RunFailed,
    Field(discriminator="type"),
]
Emit = Callable[[Event], None]

_ADAPTER: TypeAdapter[Event] = TypeAdapter(Event)


def dump_event(event: Event) -> str:
    """One JSON line, without the newline."""
    return event.model_dump_json()


def parse_event(line: str | bytes) -> Event:
    """The event of one line.

    Raises:
        pydantic.ValidationError: the line is not an event of this version.
    """
    return _ADAPTER.validate_json(line)
