"""Registered models, and jobs side by side."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from api.schemas.base import Read, Timestamp
from api.schemas.comparisons import PairedRead

MODEL_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$"
ALIAS_NAME = r"^[A-Za-z][A-Za-z0-9_.-]{0,63}$"
_MAX_VERSION = 2**31


class ModelCreate(BaseModel):
    """A model to register."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=MODEL_NAME, description="Its name; unique for you, and for good.")
    description: str | None = Field(None, max_length=2000, description="What it is for.")


class VersionCreate(BaseModel):
    """A version to add."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    checkpoint: str = Field(pattern=r"^ckpt_[0-9a-f]{32}$", description="Id of the checkpoint.")
    description: str | None = Field(None, max_length=2000, description="What is new.")


class QualityGate(BaseModel):
    """How good a version must be, by something that was measured of it after its recovery."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    suite: str = Field("perplexity", max_length=64, description="Name of the suite.")
    metric: str = Field("perplexity", max_length=64, description="Name of the metric.")
    better: Literal["higher", "lower"] = Field("lower", description="Which way is better.")
    at_least: float | None = Field(None, description="Its smallest value.")
    at_most: float | None = Field(None, description="Its largest value.")
    max_loss: float | None = Field(
        None,
        ge=0,
        description="How much worse than the version the alias names now, as a share of that.",
    )


class AliasPut(BaseModel):
    """Where an alias shall stand."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = Field(ge=1, le=_MAX_VERSION, description="The version it shall name.")
    gate: QualityGate | None = Field(
        None, description="Move it only if the version is this good; 409 `gate_not_passed` if not."
    )


class AliasRead(Read):
    """A name that moves from version to version."""

    object: Literal["model.alias"] = Field("model.alias", description="The kind.")
    model: str = Field(description="Name of the model.")
    alias: str = Field(description="Such as `production`.")
    version: int = Field(description="The version it names now.")
    revision: int = Field(description="How often it was set; also the ETag, `r` before it.")
    updated_at: Timestamp = Field(description="When it was last set.")


class VersionRead(Read):
    """A checkpoint under a number that never changes."""

    object: Literal["model.version"] = Field("model.version", description="The kind.")
    model: str = Field(description="Name of the model.")
    version: int = Field(description="Counted from 1.")
    checkpoint: str = Field(description="Id of the checkpoint, kept as long as the version.")
    description: str | None = Field(description="What is new.")
    created_at: Timestamp = Field(description="When it was added.")


class RegisteredModelRead(Read):
    """A name for a line of versions."""

    id: str = Field(description="`mdl_` and 32 hexadecimal digits.")
    object: Literal["model"] = Field("model", description="Always `model`.")
    name: str = Field(description="Its name.")
    description: str | None = Field(description="What it is for.")
    last_version: int = Field(description="The newest version; 0 before the first.")
    aliases: list[AliasRead] = Field(description="Its aliases by name.")
    created_at: Timestamp = Field(description="When it was registered.")


class ModelPage(Read):
    """One page of models, by name."""

    object: Literal["list"] = Field("list", description="Always `list`.")
    data: list[RegisteredModelRead] = Field(description="The models.")
    has_more: bool = Field(description="Whether a page follows.")
    last_name: str | None = Field(description="Pass it as `after` to get the next page.")


class VersionList(Read):
    """The versions of a model, newest first."""

    object: Literal["list"] = Field("list", description="Always `list`.")
    data: list[VersionRead] = Field(description="The versions.")
    has_more: Literal[False] = Field(False, description="The list is whole.")


class LineageStep(Read):
    """A checkpoint on the way to a version."""

    checkpoint: str = Field(description="Its id.")
    job: str = Field(description="The job that made it.")
    increment: int = Field(description="After which increment.")
    params: int = Field(description="Its parameters.")
    sha256: str = Field(description="Digest of its manifest.")


class LineageRead(Read):
    """Where a version comes from."""

    object: Literal["model.lineage"] = Field("model.lineage", description="The kind.")
    base_model: str = Field(description="The model that was pruned, as the job names it.")
    base_revision: str | None = Field(description="Its commit on the hub; null for a path.")
    data_fingerprint: str | None = Field(description="Digest of the text it was trained on.")
    steps: list[LineageStep] = Field(description="From the first increment to the version itself.")


class PointRead(Read):
    """A checkpoint as size and quality."""

    checkpoint: str = Field(description="Its id.")
    job: str = Field(description="The job that made it.")
    increment: int = Field(description="After which increment.")
    params: int = Field(description="Its parameters.")
    size_bytes: int = Field(description="Bytes of its files.")
    perplexity: float = Field(description="On the held-out text of its job, after recovery.")
    baseline_ratio: float | None = Field(description="That over the base model's.")
    decode_tokens_per_second: float | None = Field(
        description="Measured speed, where it was; of final checkpoints by default."
    )
    on_frontier: bool = Field(
        description="Whether no other here is at least as small and as good, and as fast where "
        "both were measured alike."
    )


class FrontierRead(Read):
    """The checkpoints of a base model, smallest first."""

    object: Literal["frontier"] = Field("frontier", description="Always `frontier`.")
    model: str = Field(description="The base model, as jobs name it.")
    points: list[PointRead] = Field(description="At most 1000 of them.")


class ComparedJob(Read):
    """One of the jobs compared."""

    id: str = Field(description="Id of the job.")
    name: str | None = Field(description="Its name.")
    model: str = Field(description="Its base model.")
    status: str = Field(description="Its status.")
    outcome: str | None = Field(description="How it ended.")
    params_start: int | None = Field(description="Parameters of the base model.")
    params_now: int | None = Field(description="Parameters now.")
    tokens_seen: int = Field(description="Training tokens seen.")
    seconds: float | None = Field(description="How long workers held it, once it has succeeded.")
    points: list[PointRead] = Field(description="Its measured checkpoints, smallest first.")
    against_parent: list[PairedRead] = Field(
        description="Its newest model minus its base model, on the same rows."
    )


class ComparisonRead(Read):
    """Jobs side by side."""

    object: Literal["comparison"] = Field("comparison", description="Always `comparison`.")
    jobs: list[ComparedJob] = Field(description="In the order asked for.")
    differences: dict[str, list[JsonValue]] = Field(
        description="Fields in which their recipes differ, one value per job."
    )
