"""Requests about what jobs read and leave: files, checkpoints, registered models."""

from collections.abc import Sequence

import httpx

from espalier.calls import Call, nothing, once, reading
from espalier.published import (
    Checkpoint,
    CheckpointFile,
    CheckpointPage,
    Comparison,
    DownloadUrl,
    Evaluation,
    EvaluationPage,
    FilePage,
    FilesPage,
    Frontier,
    Model,
    ModelAlias,
    ModelPage,
    ModelVersion,
    ModelVersionPage,
    Point,
)

# --- checkpoints ----------------------------------------------------------------------------------


def list_checkpoints(job_id: str) -> Call[tuple[Checkpoint, ...]]:
    """The models the job published so far, in the order of its increments."""

    def read(response: httpx.Response) -> tuple[Checkpoint, ...]:
        found = CheckpointPage.model_validate_json(response.content).data
        return tuple(sorted(found, key=lambda checkpoint: checkpoint.increment))

    return Call(method="GET", path=f"/v1/jobs/{job_id}/checkpoints", read=read)


def list_evaluations(job_id: str) -> Call[tuple[Evaluation, ...]]:
    """Every number the job measured."""

    def read(response: httpx.Response) -> tuple[Evaluation, ...]:
        return EvaluationPage.model_validate_json(response.content).data

    return Call(method="GET", path=f"/v1/jobs/{job_id}/evaluations", read=read)


def get_checkpoint(checkpoint_id: str) -> Call[Checkpoint]:
    """One published model."""
    path = f"/v1/checkpoints/{checkpoint_id}"
    return Call(method="GET", path=path, read=reading(Checkpoint))


def list_files(checkpoint_id: str) -> Call[tuple[CheckpointFile, ...]]:
    """The files of a checkpoint with their lengths and digests."""

    def read(response: httpx.Response) -> tuple[CheckpointFile, ...]:
        return FilePage.model_validate_json(response.content).data

    return Call(method="GET", path=f"/v1/checkpoints/{checkpoint_id}/files", read=read)


def download_url(
    checkpoint_id: str, path: str | None = None, *, expires_in_seconds: int = 3600
) -> Call[DownloadUrl]:
    """A URL that downloads a file, or by default the archive, without a key for a while."""

    def read(response: httpx.Response) -> DownloadUrl:
        found = DownloadUrl.model_validate_json(response.content)
        whole = str(response.request.url.join(found.url))
        return found.model_copy(update={"url": whole})

    return Call(
        method="POST",
        path=f"/v1/checkpoints/{checkpoint_id}/download-url",
        read=read,
        json={"path": path, "expires_in_s": expires_in_seconds},
    )


# --- files ----------------------------------------------------------------------------------------


def list_files_sent(*, limit: int = 20, after: str | None = None) -> Call[FilesPage]:
    """A page of uploaded files, newest first."""
    params = {"limit": limit, "after": after}
    return Call(method="GET", path="/v1/files", read=reading(FilesPage), params=params)


def delete_file(file_id: str) -> Call[None]:
    """Forget an uploaded file."""
    return Call(method="DELETE", path=f"/v1/files/{file_id}", read=nothing)


# --- models ---------------------------------------------------------------------------------------


def register_model(name: str, *, description: str | None = None) -> Call[Model]:
    """A name under which versions are kept."""
    body = {"name": name, "description": description}
    return Call(method="POST", path="/v1/models", read=reading(Model), json=body, headers=once())


def list_models(*, limit: int = 100, after: str | None = None) -> Call[ModelPage]:
    """A page of registered models, by name."""
    params = {"limit": limit, "after": after}
    return Call(method="GET", path="/v1/models", read=reading(ModelPage), params=params)


def add_version(
    name: str, checkpoint_id: str, *, description: str | None = None
) -> Call[ModelVersion]:
    """Give a checkpoint the next number of a model; it is kept from now on."""
    return Call(
        method="POST",
        path=f"/v1/models/{name}/versions",
        read=reading(ModelVersion),
        json={"checkpoint": checkpoint_id, "description": description},
        headers=once(),
    )


def list_versions(name: str) -> Call[tuple[ModelVersion, ...]]:
    """The versions of a model, newest first."""

    def read(response: httpx.Response) -> tuple[ModelVersion, ...]:
        return ModelVersionPage.model_validate_json(response.content).data

    return Call(method="GET", path=f"/v1/models/{name}/versions", read=read)


def set_alias(
    name: str, alias: str, version: int, *, revision: int | None = None
) -> Call[ModelAlias]:
    """Let an alias name a version; one that exists moves only from the `revision` it is at.

    Raises:
        Conflict: it is at another revision.
    """
    return Call(
        method="PUT",
        path=f"/v1/models/{name}/aliases/{alias}",
        read=reading(ModelAlias),
        json={"version": version},
        headers={} if revision is None else {"If-Match": f'"r{revision}"'},
    )


def compare(job_ids: Sequence[str]) -> Call[Comparison]:
    """Jobs side by side: their measured checkpoints, and where their recipes differ."""
    params = {"jobs": ",".join(job_ids)}
    return Call(method="GET", path="/v1/compare", read=reading(Comparison), params=params)


def frontier(model: str) -> Call[tuple[Point, ...]]:
    """The measured checkpoints of a base model, smallest first."""

    def read(response: httpx.Response) -> tuple[Point, ...]:
        return Frontier.model_validate_json(response.content).points

    return Call(method="GET", path="/v1/frontier", read=read, params={"model": model})
