"""Where the log of an attempt is: growing on this disk, stored, or only its end in the database."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from api.errors import Problem
from api.ranges import Read
from registry.attempts import log_name
from registry.settings import Settings
from registry.storage import CHUNK_BYTES, ArtifactStore
from registry.tables import JobAttempt

_TAIL_BYTES = 1 << 20


@dataclass(frozen=True)
class AttemptLog:
    """A log as it is now: it may grow, unless `final`."""

    length: int
    etag: str
    final: bool
    read: Read

    def tail(self, num_lines: int) -> bytes:
        """Its last lines, of the last mebibyte."""
        start = max(self.length - _TAIL_BYTES, 0)
        content = b"".join(self.read(start, self.length))
        lines = content.splitlines(keepends=True)
        return b"".join(lines[-num_lines:])


def find_log(settings: Settings, store: ArtifactStore, row: JobAttempt) -> AttemptLog:
    """The log of an attempt.

    Raises:
        Problem: 404, it is on another host until the attempt has ended.
    """
    if row.log_sha256 is not None and store.exists(row.log_sha256):
        digest = row.log_sha256
        return AttemptLog(
            length=row.log_bytes or 0,
            etag=f'"{digest}"',
            final=True,
            read=lambda start, end: store.open_range(digest, start, end),
        )
    path = settings.data_dir / log_name(row.job_id, row.fence)
    if path.is_file():
        length = path.stat().st_size
        return AttemptLog(
            length=length,
            # Weak: bytes are added while it is read, though none is changed.
            etag=f'W/"{row.fence}-{length}"',
            final=False,
            read=lambda start, end: _read_file(path, start, end),
        )
    if row.log_tail is not None:
        content = row.log_tail.encode()
        return AttemptLog(
            length=len(content),
            etag=f'W/"{row.fence}-tail"',
            final=True,
            read=lambda start, end: iter([content[start:end]]),
        )
    raise Problem("not_found", f"The log of attempt {row.attempt} is not here (yet).")


def _read_file(path: Path, start: int, end: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(start)
        while start < end and (piece := file.read(min(CHUNK_BYTES, end - start))):
            start += len(piece)
            yield piece
