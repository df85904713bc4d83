"""Files: text sent for jobs to read, whole or in parts that survive a broken connection.

Parts follow the IETF draft on resumable uploads (draft-ietf-httpbis-resumable-upload): POST with
`Upload-Complete: ?0`, then PATCH at `Upload-Offset`, which HEAD tells after a break.
"""

import re
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from api.deps import FilesReader, FilesWriter, Principal, ReadSession, StoreDep, WriteSession
from api.errors import Problem
from api.openapi import problems
from api.representations import read_upload
from api.schemas.files import UploadPage, UploadRead
from api.serving import send_blob
from api.uploads import Parts, append, finish, form_file
from registry import files, quotas
from registry.storage import ArtifactStore
from registry.tables import UploadedFile
from registry.tenancy import reading_of, transaction_of

router = APIRouter(prefix="/v1/files", tags=["files"])

NAME = r"^[A-Za-z0-9_][\w .()+-]{0,160}\.(txt|md|jsonl|parquet)(\.gz|\.zst)?$"
_NAME = re.compile(NAME)
_FILE_ID = r"^file_[0-9a-f]{32}$"
_MAX = 2**50


async def parts_of(request: Request) -> Parts:
    """Where this process keeps what is being uploaded."""
    return Parts(request.app.state.settings.data_dir)


PartsDep = Annotated[Parts, Depends(parts_of)]
Name = Annotated[
    str | None,
    Query(pattern=NAME, description="Its name; a form's file brings its own. Ends as its format."),
]
Digest = Annotated[
    str | None,
    Query(alias="sha256", pattern=r"^[0-9a-f]{64}$", description="What it must hash to."),
]
Length = Annotated[
    int | None, Header(ge=0, le=_MAX, description="Bytes of the whole file, when known.")
]
Complete = Annotated[
    str | None,
    Header(pattern=r"^\?[01]$", description="`?0`: more parts follow; `?1`: this is the last."),
]
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_FORM = {
    "schema": {
        "type": "object",
        "required": ["file"],
        "properties": {"file": {"type": "string", "format": "binary"}},
        "additionalProperties": False,
    }
}
_WHOLE_BODY = {
    "requestBody": {
        "required": False,
        "content": {"application/octet-stream": _BINARY, "multipart/form-data": _FORM},
    }
}
_PART_BODY = {"requestBody": {"required": True, "content": {"application/partial-upload": _BINARY}}}


@router.post(
    "",
    status_code=201,
    response_model=UploadRead,
    summary="Upload a file",
    openapi_extra=_WHOLE_BODY,
    responses=problems(400, 401, 403, 409, 413, 422, 429),
)
async def create_file(
    request: Request,
    who: FilesWriter,
    parts: PartsDep,
    store: StoreDep,
    name: Name = None,
    sha256: Digest = None,
    upload_length: Length = None,
    upload_complete: Complete = None,
) -> Response:
    """Send text as the body, as a form with one file, or begin an upload in parts.

    A digest given is checked, else it is computed.
    """
    _check_length(request, upload_length)
    if request.headers.get("content-type", "").startswith("multipart/form-data"):
        name, content = await form_file(request, name, _NAME)
    else:
        content = request.stream()
    if name is None:
        detail = "name: a file needs one that ends in .txt, .md, .jsonl or .parquet"
        raise Problem("validation_error", detail, param="name")
    row = await run_in_threadpool(_create, request, who, name, upload_length, sha256)
    return await _receive(
        request, store, parts, row, content, offset=0, complete=upload_complete, status=201
    )


def _create(
    request: Request, who: Principal, name: str, num_bytes: int | None, sha256: str | None
) -> UploadedFile:
    with transaction_of(request.app.state.sessions, who.tenant_id) as session:
        quotas.check_storage(session, who.tenant_id, num_bytes or 0)
        return files.create(
            session, tenant_id=who.tenant_id, name=name, num_bytes=num_bytes, sha256=sha256
        )


def _check_length(request: Request, num_bytes: int | None) -> None:
    limit = request.app.state.api_settings.max_upload_bytes
    if num_bytes is not None and num_bytes > limit:
        raise Problem("body_too_large", f"The upload may have {limit} bytes.")


async def _receive(
    request: Request,
    store: ArtifactStore,
    parts: Parts,
    row: UploadedFile,
    content: AsyncIterator[bytes],
    *,
    offset: int,
    complete: str | None,
    status: int,
) -> Response:
    limit = request.app.state.api_settings.max_upload_bytes
    with parts.appending(row.id) as file:
        stands = parts.offset(row.id)
        if stands != offset:
            raise _mismatch(stands)
        offset = await append(file, content, offset=offset, limit=limit, announced=row.size_bytes)
        if _is_whole(row, offset, complete):
            sessions = request.app.state.sessions
            row = await run_in_threadpool(finish, sessions, store, parts, row)
    answer = read_upload(row, offset)
    headers = {**_upload_headers(answer), "Location": f"/v1/files/{row.id}"}
    return JSONResponse(answer.model_dump(mode="json"), status, headers)


def _is_whole(row: UploadedFile, offset: int, complete: str | None) -> bool:
    if complete == "?0":
        return False
    if row.size_bytes is not None and offset < row.size_bytes:
        if complete == "?1":
            detail = f"Upload-Length announced {row.size_bytes} bytes, {offset} have arrived"
            raise Problem("validation_error", detail, param="Upload-Complete")
        return False
    return True


def _mismatch(stands: int) -> Problem:
    return Problem(
        "offset_mismatch",
        f"{stands} bytes have arrived; go on from there.",
        headers={"Upload-Offset": str(stands)},
        extensions={"expected_offset": stands},
    )


def _upload_headers(answer: UploadRead) -> dict[str, str]:
    done = "?1" if answer.status == "ready" else "?0"
    return {"Upload-Offset": str(answer.offset), "Upload-Complete": done}


@router.patch(
    "/{file_id}",
    response_model=UploadRead,
    summary="Send a part",
    openapi_extra=_PART_BODY,
    responses=problems(400, 401, 403, 404, 409, 413, 415, 422, 429),
)
async def append_to_file(
    request: Request,
    file_id: str,
    who: FilesWriter,
    parts: PartsDep,
    store: StoreDep,
    upload_offset: Annotated[
        int, Header(ge=0, le=_MAX, description="Where this part begins; HEAD tells.")
    ],
    upload_complete: Complete = "?0",
) -> Response:
    """Go on with an upload. It ends at its announced length, or with `Upload-Complete: ?1`."""
    media_type = request.headers.get("content-type", "").partition(";")[0]
    if media_type not in ("application/partial-upload", "application/octet-stream"):
        raise Problem("unsupported_media_type", "Send a part as application/partial-upload.")
    row = await run_in_threadpool(_get, request, who, file_id)
    if row.status == "ready":
        raise Problem("upload_complete", "The file is whole; upload another one.")
    if upload_complete == "?0" and row.size_bytes is not None:
        upload_complete = None
    return await _receive(
        request,
        store,
        parts,
        row,
        request.stream(),
        offset=upload_offset,
        complete=upload_complete,
        status=200,
    )


def _get(request: Request, who: Principal, file_id: str) -> UploadedFile:
    with reading_of(request.app.state.sessions, who.tenant_id) as session:
        return files.get(session, who.tenant_id, file_id)


@router.get("", summary="List files", responses=problems(400, 401, 403, 422))
def list_files(
    who: FilesReader,
    session: ReadSession,
    parts: PartsDep,
    limit: Annotated[int, Query(ge=1, le=100, description="Files per page.")] = 20,
    after: Annotated[
        str | None, Query(pattern=_FILE_ID, description="Id of the last file of the page before.")
    ] = None,
) -> UploadPage:
    """The files of your tenant, newest first."""
    page = files.list_page(session, who.tenant_id, limit=limit, after=after)
    return UploadPage(
        data=[_read(row, parts) for row in page.items],
        has_more=page.has_more,
        last_id=page.items[-1].id if page.items else None,
    )


def _read(row: UploadedFile, parts: Parts) -> UploadRead:
    arrived = row.size_bytes if row.status == "ready" else parts.offset(row.id)
    return read_upload(row, arrived or 0)


@router.head(
    "/{file_id}",
    response_model=UploadRead,
    summary="Where an upload stands",
    responses=problems(401, 403, 404, 422),
)
@router.get(
    "/{file_id}",
    response_model=UploadRead,
    summary="Read a file",
    responses=problems(401, 403, 404, 422),
)
def get_file(file_id: str, who: FilesReader, session: ReadSession, parts: PartsDep) -> Response:
    """What is known of a file, and in `Upload-Offset` how much of it has arrived."""
    answer = _read(files.get(session, who.tenant_id, file_id), parts)
    return JSONResponse(answer.model_dump(mode="json"), headers=_upload_headers(answer))


_CONTENT_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The whole file.", "content": {"application/octet-stream": {}}},
    206: {"description": "The ranges asked for.", "content": {"application/octet-stream": {}}},
    304: {"description": "You have it: the ETag is the sha256."},
    307: {"description": "It is there: a URL of the object store that needs no key, for a while."},
    **problems(401, 403, 404, 409, 416, 422),
}


@router.get(
    "/{file_id}/content",
    summary="Download a file",
    response_class=Response,
    responses=_CONTENT_RESPONSES,
)
def download_upload(
    request: Request, file_id: str, who: FilesReader, session: ReadSession, store: StoreDep
) -> Response:
    """The bytes that were sent."""
    row = files.get(session, who.tenant_id, file_id)
    if row.sha256 is None:
        raise Problem("invalid_state", f"{file_id} is not whole yet")
    return send_blob(
        request, store, name=row.name, sha256=row.sha256, num_bytes=row.size_bytes or 0
    )


@router.delete(
    "/{file_id}",
    status_code=204,
    summary="Delete a file",
    responses=problems(401, 403, 404, 409, 422),
)
def delete_file(file_id: str, who: FilesWriter, session: WriteSession, parts: PartsDep) -> None:
    """Forget a file or an unfinished upload; not while a job that has not ended reads it."""
    row = files.get(session, who.tenant_id, file_id, for_update=True)
    files.delete(session, row)
    parts.discard(file_id)
