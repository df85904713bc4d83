"""Checkpoints: what a job published, what was measured of it, and its files."""

import time
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from sqlalchemy.orm import Session

from api.archive import Archive, archive_of
from api.bodies import Body, json_body
from api.deps import CheckpointReader, Downloader, JobsReader, ReadSession, StoreDep
from api.errors import Problem
from api.openapi import body_of, problems
from api.ranges import serve_ranges
from api.representations import read_checkpoint, read_evaluation, read_files
from api.schemas.checkpoints import (
    CheckpointList,
    CheckpointRead,
    DownloadUrlRead,
    DownloadUrlRequest,
    EvaluationList,
    FileList,
)
from api.serving import send_blob
from api.signed_urls import sign_download
from pruning.manifest import TRAINING_STATE
from registry import checkpoints, jobs
from registry.tables import Checkpoint

router = APIRouter(prefix="/v1", tags=["checkpoints"])
_REFUSALS = problems(401, 403, 404, 422)


@router.get("/jobs/{job_id}/checkpoints", summary="List checkpoints", responses=_REFUSALS)
def list_checkpoints(job_id: str, who: JobsReader, session: ReadSession) -> CheckpointList:
    """The checkpoints of a job, oldest first."""
    jobs.get(session, who.tenant_id, job_id)
    return CheckpointList(data=read_checkpoints(session, job_id))


def read_checkpoints(session: Session, job_id: str) -> list[CheckpointRead]:
    """Every checkpoint of a job with its files and measurements."""
    evaluations = checkpoints.evaluations_for_job(session, job_id)
    return [
        read_checkpoint(row, checkpoints.files(session, row.id), evaluations)
        for row in checkpoints.list_for_job(session, job_id)
    ]


@router.get("/jobs/{job_id}/evaluations", summary="List evaluations of a job", responses=_REFUSALS)
def list_job_evaluations(job_id: str, who: JobsReader, session: ReadSession) -> EvaluationList:
    """Everything measured in a job: of the base model, after each cut, after each recovery."""
    jobs.get(session, who.tenant_id, job_id)
    rows = checkpoints.evaluations_for_job(session, job_id)
    return EvaluationList(data=[read_evaluation(row) for row in rows])


@router.get("/checkpoints/{checkpoint_id}", summary="Read a checkpoint", responses=_REFUSALS)
def get_checkpoint(
    checkpoint_id: str, who: CheckpointReader, session: ReadSession
) -> CheckpointRead:
    """A checkpoint, also one whose files were deleted."""
    row = checkpoints.get(session, who.tenant_id, checkpoint_id)
    evaluations = checkpoints.evaluations_for_job(session, row.job_id)
    return read_checkpoint(row, checkpoints.files(session, row.id), evaluations)


@router.get(
    "/checkpoints/{checkpoint_id}/evaluations",
    summary="List evaluations of a checkpoint",
    responses=_REFUSALS,
)
def list_checkpoint_evaluations(
    checkpoint_id: str, who: CheckpointReader, session: ReadSession
) -> EvaluationList:
    """What was measured of one checkpoint, before and after its recovery."""
    row = checkpoints.get(session, who.tenant_id, checkpoint_id)
    rows = checkpoints.evaluations_for_checkpoint(session, row.id)
    return EvaluationList(data=[read_evaluation(one) for one in rows])


@router.get(
    "/checkpoints/{checkpoint_id}/files",
    summary="List files",
    responses=problems(401, 403, 404, 410, 422),
)
def list_files(checkpoint_id: str, who: CheckpointReader, session: ReadSession) -> FileList:
    """The files of a checkpoint with size and sha256."""
    row = _present(checkpoints.get(session, who.tenant_id, checkpoint_id))
    return FileList(data=read_files(row.id, checkpoints.files(session, row.id)))


_FILE = "/checkpoints/{checkpoint_id}/files/{path:path}"
_FILE_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The whole file.", "content": {"application/octet-stream": {}}},
    206: {"description": "The ranges asked for.", "content": {"application/octet-stream": {}}},
    304: {"description": "You have it: the ETag is the sha256."},
    307: {"description": "It is there: a URL of the object store that needs no key, for a while."},
    **problems(401, 403, 404, 410, 416, 422),
}


@router.head(_FILE, summary="Describe a file", response_class=Response, responses=_FILE_RESPONSES)
@router.get(_FILE, summary="Download a file", response_class=Response, responses=_FILE_RESPONSES)
def download_file(
    request: Request,
    checkpoint_id: str,
    path: str,
    who: Downloader,
    session: ReadSession,
    store: StoreDep,
    _range: Annotated[
        str | None, Header(alias="Range", description="`bytes=…`, to go on where a download ended.")
    ] = None,
) -> Response:
    """One file, whole or in ranges.

    `path` is only compared with the names in the manifest; no path of the server is made from it.
    """
    row = _present(checkpoints.get(session, who.tenant_id, checkpoint_id))
    file = checkpoints.get_file(session, row.id, path)
    return send_blob(request, store, name=file.path, sha256=file.sha256, num_bytes=file.size_bytes)


def _present(row: Checkpoint) -> Checkpoint:
    if row.status == "deleted":
        raise Problem("checkpoint_deleted", f"checkpoint {row.id!r} was deleted")
    return row


_ARCHIVE = "/checkpoints/{checkpoint_id}/archive.tar"
_ARCHIVE_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The whole archive.", "content": {"application/x-tar": {}}},
    206: {"description": "The range asked for.", "content": {"application/x-tar": {}}},
    304: {"description": "You have it."},
    **problems(401, 403, 404, 410, 416, 422),
}
WithTrainingState = Annotated[
    bool, Query(description="Also what resuming the run would need: about six times the weights.")
]


@router.head(
    _ARCHIVE, summary="Describe the archive", response_class=Response, responses=_ARCHIVE_RESPONSES
)
@router.get(
    _ARCHIVE, summary="Download the archive", response_class=Response, responses=_ARCHIVE_RESPONSES
)
def download_archive(
    request: Request,
    checkpoint_id: str,
    who: Downloader,
    session: ReadSession,
    store: StoreDep,
    training_state: WithTrainingState = False,
    _range: Annotated[
        str | None, Header(alias="Range", description="`bytes=…`, to go on where a download ended.")
    ] = None,
) -> Response:
    """All files as one uncompressed tar, the same to the byte each time, so that ranges work."""
    row = _present(checkpoints.get(session, who.tenant_id, checkpoint_id))
    archive = _archive(session, row, training_state=training_state)
    return serve_ranges(
        request,
        lambda start, end: archive.read(store, start, end),
        length=archive.length,
        etag=archive.etag,
        media_type="application/x-tar",
        headers={
            "Cache-Control": "private, no-cache",
            "Content-Disposition": f'attachment; filename="{row.id}.tar"',
        },
    )


def _archive(session: Session, row: Checkpoint, *, training_state: bool) -> Archive:
    files = checkpoints.files(session, row.id)
    prefix = f"{TRAINING_STATE}/"
    return archive_of([f for f in files if training_state or not f.path.startswith(prefix)])


@router.post(
    "/checkpoints/{checkpoint_id}/download-url",
    summary="Make a signed URL",
    openapi_extra=body_of("DownloadUrlRequest", required=False),
    responses=problems(400, 401, 403, 404, 410, 413, 415, 422),
)
def create_download_url(
    request: Request,
    checkpoint_id: str,
    who: CheckpointReader,
    body: Annotated[
        Body[DownloadUrlRequest], Depends(json_body(DownloadUrlRequest, optional=True))
    ],
    session: ReadSession,
) -> DownloadUrlRead:
    """A URL that downloads one file, or the archive, without a key until it expires."""
    wanted = body.value
    row = _present(checkpoints.get(session, who.tenant_id, checkpoint_id))
    root = f"/v1/checkpoints/{row.id}"
    if wanted.path is None:
        path, query = f"{root}/archive.tar", {"training_state": str(wanted.training_state).lower()}
        size = _archive(session, row, training_state=wanted.training_state).length
        sha256 = None
    else:
        file = checkpoints.get_file(session, row.id, wanted.path)
        path, query, size, sha256 = f"{root}/files/{file.path}", {}, file.size_bytes, file.sha256
    expires_at = datetime.fromtimestamp(int(time.time()) + wanted.expires_in_s, UTC)
    url = sign_download(
        request.app.state.signer,
        path,
        query,
        key_id=who.key_id,
        expires=int(expires_at.timestamp()),
    )
    return DownloadUrlRead(url=url, expires_at=expires_at, size=size, sha256=sha256)
