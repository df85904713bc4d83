"""What a job would lead to."""

from typing import Literal

from pydantic import Field

from api.schemas.base import Read


class ModelRead(Read):
    """The base model, by its configuration."""

    model_type: str = Field(description="The architecture.")
    revision: str | None = Field(description="Commit on the hub; null for a path.")
    params: int = Field(description="Parameters, tied ones counted once.")
    prunable_params: int = Field(description="Those of the decoder layers.")
    size_bytes: int = Field(description="Bytes of its weights in `output.dtype`.")


class SizeRead(Read):
    """A size a model may be pruned to."""

    params: int = Field(description="Parameters, tied ones counted once.")
    size_bytes: int = Field(description="Bytes of the weights in `output.dtype`.")
    sparsity: float = Field(description="Share of the prunable parameters removed.")


class EstimatedTime(Read):
    """How long a job would take once a worker has it."""

    estimate_available: bool = Field(description="Whether `seconds` means something.")
    seconds: float | None = Field(
        description="By the pace of your finished jobs; null before the first, or when the number "
        "of training tokens is not known."
    )
    jobs: int = Field(description="Finished jobs that the pace was taken from.")
    device: str | None = Field(description="The kind of device they ran on.")


class ForecastRead(Read):
    """The held-out perplexity a size would cost, foretold from your own past jobs."""

    params: int = Field(description="The size foretold.")
    ratio: float | None = Field(
        description="Expected perplexity over the base model's; null where there is no forecast."
    )
    ratio_low: float | None = Field(description="Lower end of the interval.")
    ratio_high: float | None = Field(description="Upper end of the interval.")
    interval: float = Field(description="Share of jobs that the interval is meant to hold.")
    jobs: int = Field(description="Past jobs it was fitted to.")
    same_method: bool = Field(description="Whether only jobs of the same method were.")
    held: int = Field(
        description="Past increments that an interval from all other jobs would have held."
    )
    tried: int = Field(description="Of so many.")
    reason: str | None = Field(description="Why there is no forecast.")


class EstimateRead(Read):
    """What a job would lead to, computed from its model's configuration."""

    object: Literal["prune.estimate"] = Field("prune.estimate", description="The kind.")
    model: ModelRead = Field(description="The base model.")
    targets: list[SizeRead] = Field(description="The sizes to publish, in the order given.")
    floor: SizeRead = Field(description="The size that no target can go below.")
    increments: list[int] = Field(description="Parameters after each prune-and-recover cycle.")
    tokens: int | None = Field(
        description="Training tokens; null when the text cannot be measured from here."
    )
    calibration_tokens: int | None = Field(
        description="Tokens that each cut is measured on; null when that depends on text that "
        "cannot be measured from here."
    )
    peak_memory_bytes: int = Field(description="Memory of the run while it trains.")
    storage_bytes: int = Field(description="Bytes of all checkpoints, training states included.")
    time: EstimatedTime = Field(description="How long it would take.")
    forecast: list[ForecastRead] = Field(
        description="What quality to expect of each target, in the order given."
    )
