"""Checkpoints, their files and what was measured of them."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from api.schemas.base import Read, StoredJson, Timestamp
from pruning.events import LayerWidths


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
    protocol: StoredJson = Field(description="How: device, lengths, dtype and the like.")
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


class DownloadUrlRequest(BaseModel):
    """What to sign a URL for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str | None = Field(
        None, max_length=512, description="A file of the checkpoint. Default: the archive."
    )
    training_state: bool = Field(
        False, description="Whether the archive holds what resuming the run would need."
    )
    expires_in_s: int = Field(3600, ge=1, le=604_800, description="Seconds it can be used for.")


class DownloadUrlRead(Read):
    """A URL that needs no key."""

    object: Literal["download_url"] = Field("download_url", description="The kind.")
    url: str = Field(description="Path and query, relative to the server.")
    expires_at: Timestamp = Field(description="When it stops working.")
    size: int = Field(description="Bytes of what it downloads.")
    sha256: str | None = Field(description="Digest of the file; null for an archive.")
