"""Sending one file so that a broken connection costs only what was on the way."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx

from espalier.errors import ServerUnreachable, raise_for_problem
from espalier.published import File

OnBytes = Callable[[int], None]
"""Called with the number of bytes that were sent since the last call."""

_PIECE_BYTES = 1 << 20
_MAX_BREAKS = 5
"""In a row that bring nothing: one that goes on is not given up, however often it breaks."""


def upload_file(http: httpx.Client, path: Path, on_bytes: OnBytes | None = None) -> File:
    """Send a file in as many requests as it takes.

    Raises:
        ServerUnreachable: the connection broke `_MAX_BREAKS` times in a row without a byte.
        ServerProblem: the server refuses it.
    """
    with path.open("rb") as source:
        digest = hashlib.file_digest(source, "sha256").hexdigest()
    size = path.stat().st_size
    begun = http.post(
        "/v1/files",
        params={"name": path.name, "sha256": digest},
        headers={"Upload-Complete": "?0", "Upload-Length": str(size)},
    )
    raise_for_problem(begun)
    file = File.model_validate_json(begun.content)
    breaks = 0
    while True:
        try:
            return _send_rest(http, file, path, on_bytes)
        except httpx.TransportError as error:
            before, file = file, _look(http, file)
            breaks = 0 if file.offset > before.offset else breaks + 1
            if breaks == _MAX_BREAKS:
                raise ServerUnreachable(f"{path}: {error}") from error


def _look(http: httpx.Client, file: File) -> File:
    response = http.get(f"/v1/files/{file.id}")
    raise_for_problem(response)
    return File.model_validate_json(response.content)


def _send_rest(http: httpx.Client, file: File, path: Path, on_bytes: OnBytes | None) -> File:
    if file.status == "ready":
        return file
    response = http.patch(
        f"/v1/files/{file.id}",
        headers={
            "Content-Type": "application/partial-upload",
            "Upload-Offset": str(file.offset),
            "Upload-Complete": "?1",
        },
        content=_pieces(path, file.offset, on_bytes),
    )
    raise_for_problem(response)
    return File.model_validate_json(response.content)


def _pieces(path: Path, start: int, on_bytes: OnBytes | None) -> Iterator[bytes]:
    with path.open("rb") as source:
        source.seek(start)
        while piece := source.read(_PIECE_BYTES):
            yield piece
            if on_bytes is not None:
                on_bytes(len(piece))
