"""Sending a file of text from the browser."""

import re
import shutil
from typing import Annotated

from fastapi import APIRouter, File, Request, Response, UploadFile
from fastapi.responses import JSONResponse

from api.dashboard.viewing import FilesActor, go
from api.deps import StoreDep
from api.errors import Problem
from api.routes.files import NAME, PartsDep
from api.uploads import finish
from registry import files, quotas
from registry.tenancy import transaction_of

router = APIRouter(prefix="/files")


@router.post("")
def upload(
    request: Request,
    who: FilesActor,
    store: StoreDep,
    parts: PartsDep,
    file: Annotated[UploadFile, File()],
) -> Response:
    """Store a file; the form for a job then names it, or a script is told its id."""
    name = (file.filename or "").replace("\\", "/").rpartition("/")[2]
    if not re.fullmatch(NAME, name):
        detail = f"name: {name!r} must end in .txt, .md, .jsonl or .parquet"
        raise Problem("validation_error", detail, param="file")
    sessions, size = request.app.state.sessions, file.size
    with transaction_of(sessions, who.tenant_id) as session:
        quotas.check_storage(session, who.tenant_id, size or 0)
        row = files.create(session, tenant_id=who.tenant_id, name=name, num_bytes=size, sha256=None)
    with parts.appending(row.id) as written:
        shutil.copyfileobj(file.file, written)
    finish(sessions, store, parts, row)
    if "application/json" in request.headers.get("accept", ""):
        return JSONResponse({"id": row.id, "name": name})
    return go(f"/jobs/new?data={row.id}")
