"""Receiving files: as a whole or in parts, each byte on disk as it comes in.

The part file's length is the upload's offset, so that what arrived before a connection broke is
never lost and never counted twice. API processes share `data_dir`.
"""

import contextlib
import fcntl
import re
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from sqlalchemy.orm import Session
from starlette.datastructures import UploadFile

from api.errors import Problem
from registry import files, quotas
from registry.db import SessionFactory
from registry.errors import BlobNotFound, ChecksumMismatch
from registry.storage import CHUNK_BYTES, ArtifactStore, StoredBlob
from registry.tables import UploadedFile
from registry.tenancy import transaction_of

_BUFFER_BYTES = 1 << 20
_MAX_PUBLISHES = 3


class Parts:
    """The directory of what is being uploaded."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir

    def path(self, file_id: str) -> Path:
        """Where the bytes of an upload lie until it is whole."""
        return files.part_path(self._data_dir, file_id)

    def offset(self, file_id: str) -> int:
        """How many bytes of an upload have arrived."""
        try:
            return self.path(file_id).stat().st_size
        except FileNotFoundError:
            return 0

    def discard(self, file_id: str) -> None:
        """Forget what has arrived."""
        self.path(file_id).unlink(missing_ok=True)

    @contextmanager
    def appending(self, file_id: str) -> Iterator[BinaryIO]:
        """The part file, for one writer at a time.

        Raises:
            Problem: 409, another request is writing.
        """
        path = self.path(file_id)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with path.open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Problem(
                    "upload_in_progress", "Another request is writing to it.", retryable=True
                ) from None
            yield file


async def append(
    file: BinaryIO,
    content: AsyncIterable[bytes],
    *,
    offset: int,
    limit: int,
    announced: int | None,
) -> int:
    """Write what comes in behind `offset`; the new offset. What came before a break stays.

    Raises:
        Problem: 413, it would be longer than `limit`, or 422, than was announced; nothing beyond
            that was written.
    """
    waiting = bytearray()
    try:
        async for piece in content:
            length = offset + len(waiting) + len(piece)
            if announced is not None and length > announced:
                detail = f"Upload-Length: {announced} bytes were announced, and more came"
                raise Problem("validation_error", detail, param="Upload-Length")
            if length > limit:
                raise Problem("body_too_large", f"The upload may have {limit} bytes.")
            waiting += piece
            if len(waiting) >= _BUFFER_BYTES:
                offset += await _write(file, waiting)
    finally:
        offset += await _write(file, waiting)
    return offset


async def _write(file: BinaryIO, waiting: bytearray) -> int:
    content = bytes(waiting)
    waiting.clear()

    def write() -> None:
        file.write(content)
        file.flush()

    await run_in_threadpool(write)
    return len(content)


def finish(
    sessions: SessionFactory, store: ArtifactStore, parts: Parts, row: UploadedFile
) -> UploadedFile:
    """Store the bytes that have arrived as the whole file.

    Raises:
        ChecksumMismatch: they are not what was announced; they are forgotten.
        StorageFull: they do not fit.
    """
    path = parts.path(row.id)
    store.require_space(path.stat().st_size)
    for attempt in range(_MAX_PUBLISHES):
        blob = store.put_file(path)
        if row.declared_sha256 not in (None, blob.sha256):
            parts.discard(row.id)
            raise ChecksumMismatch(f"sha256 is {blob.sha256}, not {row.declared_sha256}")
        try:
            with transaction_of(sessions, row.tenant_id) as session:
                found = _complete(session, row, blob)
        except BlobNotFound:
            # The collector took an older copy of the same bytes in the moment between.
            if attempt == _MAX_PUBLISHES - 1:
                raise
            continue
        break
    with contextlib.suppress(OSError):
        parts.discard(row.id)
    return found


def _complete(session: Session, row: UploadedFile, blob: StoredBlob) -> UploadedFile:
    found = files.get(session, row.tenant_id, row.id, for_update=True)
    if found.size_bytes is None:
        quotas.check_storage(session, row.tenant_id, blob.num_bytes)
    files.complete(session, found, blob)
    return found


async def form_file(
    request: Request, name: str | None, allowed: re.Pattern[str]
) -> tuple[str, AsyncIterator[bytes]]:
    """The name, unless one is given, and the content of the one file that a form has.

    Raises:
        Problem: 422, the form has something else, or the name is not an allowed one.
    """
    form = await request.form(max_files=1, max_fields=8)
    unknown = sorted(set(form) - {"file"})
    if unknown:
        detail = f"{unknown[0]}: a form has one field, file"
        raise Problem("validation_error", detail, param=unknown[0])
    sent = form.get("file")
    if not isinstance(sent, UploadFile):
        raise Problem("validation_error", "file: the form has no such file", param="file")
    found = name or (sent.filename or "").replace("\\", "/").rpartition("/")[2]
    if not allowed.fullmatch(found):
        detail = f"name: {found!r} must end in .txt, .md, .jsonl or .parquet"
        raise Problem("validation_error", detail, param="name")

    async def pieces() -> AsyncIterator[bytes]:
        while piece := await sent.read(CHUNK_BYTES):
            yield piece

    return found, pieces()
