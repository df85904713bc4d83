"""A checkpoint as one tar file, the same to the byte each time, without ever being stored.

Names are sorted, times and owners are zero, so the list of files decides every byte: length and
ETag are known before the first is read, and any range of it can be sent.
"""

import hashlib
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from registry.storage import ArtifactStore
from registry.tables import CheckpointFile

_BLOCK = tarfile.BLOCKSIZE
_END = bytes(2 * _BLOCK)
_FORMAT_VERSION = 1
_MODE = 0o644


@dataclass(frozen=True)
class _Part:
    """A stretch of the archive: bytes made here, or those of a blob."""

    length: int
    content: bytes | None
    sha256: str = ""


@dataclass(frozen=True)
class Archive:
    """The layout of an archive."""

    parts: tuple[_Part, ...]
    etag: str

    @property
    def length(self) -> int:
        """Bytes of the whole archive."""
        return sum(part.length for part in self.parts)

    def read(self, store: ArtifactStore, start: int, end: int) -> Iterator[bytes]:
        """The bytes `[start, end)` in pieces."""
        at = 0
        for part in self.parts:
            first, last = max(start - at, 0), min(end - at, part.length)
            at += part.length
            if first >= last:
                continue
            if part.content is not None:
                yield part.content[first:last]
            else:
                yield from store.open_range(part.sha256, first, last)


def archive_of(files: Sequence[CheckpointFile]) -> Archive:
    """The archive of these files."""
    ordered = sorted(files, key=lambda file: file.path)
    named = [[file.path, file.size_bytes, file.sha256] for file in ordered]
    digest = hashlib.sha256(json.dumps([_FORMAT_VERSION, named]).encode()).hexdigest()
    parts = [part for file in ordered for part in _parts(file)]
    return Archive(parts=(*parts, _Part(len(_END), _END)), etag=f'"{digest}"')


def _parts(file: CheckpointFile) -> Iterator[_Part]:
    entry = tarfile.TarInfo(file.path)
    entry.size, entry.mode = file.size_bytes, _MODE
    header = entry.tobuf(tarfile.PAX_FORMAT)
    yield _Part(len(header), header)
    yield _Part(file.size_bytes, None, file.sha256)
    padding = -file.size_bytes % _BLOCK
    yield _Part(padding, bytes(padding))
