"""Fetching one file so that it is either whole and right, or not there."""

import hashlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from urllib.parse import quote

import httpx

from espalier.errors import ChecksumMismatch, EspalierError, ServerUnreachable, raise_for_problem
from espalier.published import CheckpointFile

OnBytes = Callable[[int], None]
"""Called with the number of bytes that have come in since the last call."""

_MAX_BREAKS = 5
"""In a row that bring nothing: one that goes on is not given up, however often it breaks."""


def download_file(
    http: httpx.Client, url: str, file: CheckpointFile, directory: Path, on_bytes: OnBytes | None
) -> Path:
    """Fetch `file` to its place under `directory`; a part left by an earlier attempt is continued.

    Raises:
        ChecksumMismatch: what arrived is not what was promised, also when fetched from the start.
        ServerUnreachable: the connection broke `_MAX_BREAKS` times in a row without a byte.
    """
    path = _place(directory, file.path)
    if path.is_file() and path.stat().st_size == file.size and _sha256(path) == file.sha256:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    continued = part.exists()
    _fetch(http, url, file, part, on_bytes)
    if _sha256(part) != file.sha256 and continued:
        part.unlink()  # what the earlier attempt left was bad, or of another version
        _fetch(http, url, file, part, on_bytes)
    found = _sha256(part)
    if found != file.sha256:
        part.unlink()
        raise ChecksumMismatch(f"{file.path}: sha256 {found}, the server says {file.sha256}")
    return part.replace(path)


def _place(directory: Path, name: str) -> Path:
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts or "\\" in name or not relative.parts:
        raise EspalierError(
            f"the server offers a file named {name!r}, which is no place to write to"
        )
    return directory.joinpath(*relative.parts)


def _fetch(
    http: httpx.Client, url: str, file: CheckpointFile, part: Path, on_bytes: OnBytes | None
) -> None:
    breaks = 0
    while True:
        start = part.stat().st_size if part.exists() else 0
        if start == file.size and part.exists():
            return
        if start > file.size:
            part.unlink()
            start = 0
        try:
            _fetch_rest(http, url, part, start, on_bytes)
        except httpx.TransportError as error:
            brought = part.exists() and part.stat().st_size > start
            breaks = 0 if brought else breaks + 1
            if breaks == _MAX_BREAKS:
                raise ServerUnreachable(f"{file.path}: {error}") from error
        else:
            return


def _fetch_rest(
    http: httpx.Client, url: str, part: Path, start: int, on_bytes: OnBytes | None
) -> None:
    headers = {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    with http.stream("GET", quote(url, safe="/"), headers=headers) as response:
        if response.status_code >= 400:
            response.read()
        raise_for_problem(response)
        mode = "ab" if response.status_code == httpx.codes.PARTIAL_CONTENT else "wb"
        with part.open(mode) as target:
            # As they come in: pieces of a fixed length would be lost when the connection breaks.
            for piece in response.iter_raw():
                target.write(piece)
                if on_bytes is not None:
                    on_bytes(len(piece))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
