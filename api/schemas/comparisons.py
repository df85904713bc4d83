"""A job's model beside its parent, the cut alone, and public models of its size."""

from typing import Literal

from pydantic import Field, JsonValue

from api.schemas.base import Read


class FigureRead(Read):
    """One number and how it was measured."""

    suite: str = Field(description="Such as `perplexity` or the name of a task.")
    metric: str = Field(description="What was measured.")
    better: Literal["higher", "lower"] = Field(description="Which way is better.")
    value: float | None = Field(description="The number; null when it is not finite.")
    stderr: float | None = Field(description="Its standard error, when known.")
    n: int | None = Field(description="Over how many samples.")
    protocol: dict[str, JsonValue] = Field(description="How: data, lengths, precision and so on.")


class PairedRead(Read):
    """Two models on the same rows: the second minus the first."""

    suite: str = Field(description="Name of the suite.")
    metric: str = Field(
        description="The metric that the rows belong to; rows of a perplexity are losses in nats."
    )
    rows: int = Field(description="How many.")
    difference: float = Field(description="Mean over the rows, the second minus the first.")
    stderr: float = Field(description="Standard error of the difference.")
    low: float = Field(description="Lower end of the 95 % interval.")
    high: float = Field(description="Upper end of the 95 % interval.")
    p_value: float = Field(description="How likely chance alone makes a difference as large.")
    greater: int = Field(description="Rows in which the second's number is greater.")
    less: int = Field(description="Rows in which it is less.")
    test: Literal["mcnemar", "paired_normal"] = Field(
        description="Exact for right and wrong answers, normal for other numbers."
    )


class StandingRead(Read):
    """A model of the job."""

    increment: int = Field(description="0 is the parent.")
    params: int | None = Field(description="Its parameters.")
    figures: list[FigureRead] = Field(description="What was measured of it.")


class OtherModelRead(Read):
    """A model that the job's suites measured too."""

    name: str = Field(description="As the job names it in `evaluation.compare_with`.")
    params: int | None = Field(description="Its parameters.")
    figures: list[FigureRead] = Field(description="What was measured of it.")
    against_result: list[PairedRead] = Field(description="Result minus this model, row by row.")


class PublicModelRead(Read):
    """A model to download instead."""

    name: str = Field(description="Its repository.")
    params: int = Field(description="Its parameters.")
    figures: dict[str, float] = Field(
        description="Accuracies in percent as its makers report them, by task; may be empty."
    )
    source: str | None = Field(description="Where they are printed.")
    protocol: str | None = Field(description="How they were measured: not as ours were.")


class CostRead(Read):
    """What a job has cost so far."""

    device: str | None = Field(description="The kind of device.")
    device_seconds: float = Field(description="How long workers held it.")
    tokens: int = Field(description="Training tokens seen.")
    energy_joules: float | None = Field(
        description="What its devices have used; null where none of them says."
    )


class PlacementRead(Read):
    """Whether a job's model is better than what there was before."""

    object: Literal["job.comparison"] = Field("job.comparison", description="The kind.")
    job: str = Field(description="Id of the job.")
    model: str = Field(description="The parent, as the job names it.")
    parent: StandingRead = Field(description="The model before any cut.")
    cut: StandingRead | None = Field(description="Right after the newest cut, not yet trained.")
    result: StandingRead | None = Field(description="After the newest recovery.")
    against_parent: list[PairedRead] = Field(description="Result minus parent, row by row.")
    against_cut: list[PairedRead] = Field(description="Result minus cut, row by row.")
    others: list[OtherModelRead] = Field(
        description="Models named in `evaluation.compare_with`, measured on the same rows."
    )
    public_models: list[PublicModelRead] = Field(
        description="Of half to twice the result's size, or the target's before there is one."
    )
    cost: CostRead = Field(description="What it took.")
