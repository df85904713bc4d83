"""What jobs read and leave: files, checkpoints, evaluations, registered models."""

from datetime import datetime
from typing import Any

from pydantic import Field

from espalier.resources import Resource


class CheckpointFile(Resource):
    """One file of a checkpoint: its path inside it, length in bytes and sha256."""

    path: str
    size: int
    sha256: str


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
