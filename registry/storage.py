"""The artifact store: bytes named by their sha256, complete or absent.

A blob is written under a temporary name, made durable and renamed, so that a crash leaves garbage
under `tmp/` and never half a blob under its name. Rows refer to a blob only after `put_file`
returned.
"""

import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Protocol
from urllib.parse import unquote, urlsplit

from registry.errors import BlobCorrupt, BlobNotFound, StorageFull

CHUNK_BYTES = 1 << 20
_DIRECTORY_MODE = 0o700


@dataclass(frozen=True)
class StoredBlob:
    sha256: str
    num_bytes: int


@dataclass(frozen=True)
class Entry:
    """A blob as the store lists it; its bytes were not looked at."""

    sha256: str
    num_bytes: int
    modified_at: datetime


class ArtifactStore(Protocol):
    """What the service needs of a place for bytes."""

    def put_file(self, path: Path) -> StoredBlob:
        """Store a file durably; storing the same bytes again is cheap and harmless."""
        ...

    def exists(self, sha256: str) -> bool:
        """Whether the blob is there."""
        ...

    def open_range(self, sha256: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The bytes `[start, end)` in pieces.

        Raises:
            BlobNotFound: there is no such blob.
        """
        ...

    def fetch(self, sha256: str, destination: Path) -> None:
        """Copy a blob to a local file, hashing on the way.

        Raises:
            BlobNotFound: there is no such blob.
            BlobCorrupt: its bytes have another digest; nothing is left at `destination`.
        """
        ...

    def local_path(self, sha256: str) -> Path | None:
        """The blob's own file, if the store has files here: for serving without a copy."""
        ...

    def download_url(self, sha256: str, *, file_name: str, seconds: int = 3600) -> str | None:
        """A URL to send a reader to instead, if the store serves readers itself."""
        ...

    def require_space(self, num_bytes: int) -> None:
        """Check before writing that so much fits.

        Raises:
            StorageFull: it does not.
        """
        ...

    def delete(self, sha256: str) -> None:
        """Remove a blob; one that is not there is fine."""
        ...

    def entries(self) -> Iterator[Entry]:
        """Everything that is stored, in no order."""
        ...

    def discard_partial(self, before: datetime) -> int:
        """Remove what was begun before then and never became a blob; how many."""
        ...


class LocalStore:
    """An artifact store in a directory: `sha256/ab/abcd…` for blobs, `tmp/` for what is being
    written.
    """

    def __init__(self, root: Path, *, reserve_bytes: int = 0) -> None:
        self.root = root
        self.reserve_bytes = reserve_bytes

    def path_of(self, sha256: str) -> Path:
        """Where a blob of that digest lies, whether or not it exists."""
        require_digest(sha256)
        return self.root / "sha256" / sha256[:2] / sha256

    def put_file(self, path: Path) -> StoredBlob:
        temporary = self.root / "tmp" / uuid.uuid4().hex
        try:
            _make_directory(temporary.parent)
            with path.open("rb") as source, temporary.open("xb") as target:
                blob = _copy(source, target)
                target.flush()
                os.fsync(target.fileno())
            self._publish(temporary, self.path_of(blob.sha256))
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StorageFull(f"no space left in {self.root}") from error
            raise
        finally:
            temporary.unlink(missing_ok=True)
        return blob

    def _publish(self, temporary: Path, final: Path) -> None:
        _make_directory(final.parent)
        temporary.replace(final)
        # The rename is durable only with its directory, and the directory only with its parent.
        _sync_directory(final.parent)
        _sync_directory(final.parent.parent)

    def exists(self, sha256: str) -> bool:
        return self.path_of(sha256).is_file()

    def open_range(self, sha256: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        with self._open(sha256) as file:
            file.seek(start)
            left = None if end is None else end - start
            while left is None or left > 0:
                piece = file.read(CHUNK_BYTES if left is None else min(CHUNK_BYTES, left))
                if not piece:
                    return
                left = None if left is None else left - len(piece)
                yield piece

    def fetch(self, sha256: str, destination: Path) -> None:
        destination.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self._open(sha256) as source, destination.open("wb") as target:
                found = _copy(source, target)
            if found.sha256 != sha256:
                raise BlobCorrupt(f"blob {sha256} holds bytes of digest {found.sha256}")
        except BaseException:
            destination.unlink(missing_ok=True)
            raise

    @contextmanager
    def _open(self, sha256: str) -> Iterator[BinaryIO]:
        try:
            file = self.path_of(sha256).open("rb")
        except FileNotFoundError:
            raise BlobNotFound(f"no blob {sha256} in {self.root}") from None
        with file:
            yield file

    def local_path(self, sha256: str) -> Path | None:
        path = self.path_of(sha256)
        return path if path.is_file() else None

    def download_url(
        self,
        sha256: str,  # noqa: ARG002  # The protocol's signature.
        *,
        file_name: str,  # noqa: ARG002
        seconds: int = 3600,  # noqa: ARG002
    ) -> None:
        return None

    def require_space(self, num_bytes: int) -> None:
        _make_directory(self.root)
        free = shutil.disk_usage(self.root).free
        if free < num_bytes + self.reserve_bytes:
            raise StorageFull(
                f"{num_bytes} bytes do not fit into {self.root}: {free} bytes are free, "
                f"{self.reserve_bytes} of them reserved"
            )

    def delete(self, sha256: str) -> None:
        self.path_of(sha256).unlink(missing_ok=True)

    def entries(self) -> Iterator[Entry]:
        for path, status in _files(self.root, "sha256/*/*"):
            yield Entry(path.name, status.st_size, _utc(status.st_mtime))

    def discard_partial(self, before: datetime) -> int:
        files = _files(self.root, "tmp/*")
        old = [path for path, status in files if _utc(status.st_mtime) < before]
        for path in old:
            path.unlink(missing_ok=True)
        return len(old)


def store_for(url: str, *, reserve_bytes: int = 0) -> ArtifactStore:
    """The store that an `artifacts_url` names.

    Raises:
        ValueError: its scheme is not supported.
    """
    parts = urlsplit(url)
    match parts.scheme:
        case "file":
            return LocalStore(Path(unquote(parts.path)), reserve_bytes=reserve_bytes)
        case "s3":
            # Only who asks for it needs boto3, and waits for its import.
            from registry.storage_s3 import open_s3

            return open_s3(parts.netloc, unquote(parts.path))
        case scheme:
            raise ValueError(
                f"artifacts_url must be file:///directory or s3://bucket/prefix, not {scheme!r}"
            )


def require_digest(sha256: str) -> None:
    """Refuse names that are no digest, before they become part of a path.

    Raises:
        BlobNotFound: it is none.
    """
    if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
        raise BlobNotFound(f"{sha256!r} is not a sha256")


def hash_file(path: Path) -> StoredBlob:
    """Name and size that the file would have as a blob."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return StoredBlob(sha256=digest, num_bytes=file.tell())


def _copy(source: BinaryIO, target: BinaryIO) -> StoredBlob:
    digest = hashlib.sha256()
    num_bytes = 0
    while piece := source.read(CHUNK_BYTES):
        digest.update(piece)
        target.write(piece)
        num_bytes += len(piece)
    return StoredBlob(sha256=digest.hexdigest(), num_bytes=num_bytes)


def _files(root: Path, pattern: str) -> Iterator[tuple[Path, os.stat_result]]:
    for path in root.glob(pattern):
        try:
            yield path, path.stat()
        except FileNotFoundError:
            continue  # Deleted, or given its name, meanwhile.


def _utc(timestamp: float) -> datetime:
    return datetime.fromtimestamp(timestamp, UTC)


def _make_directory(path: Path) -> None:
    path.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
