"""From a directory that the child left to a checkpoint of the job, and back.

Blobs first, then the rows that name them: a crash in between leaves garbage and no broken
checkpoint.
"""

from pathlib import Path, PurePosixPath

from sqlalchemy.orm import Session

from pruning.errors import CheckpointCorrupt
from pruning.events import IncrementFinished
from pruning.manifest import MANIFEST_NAME, FileDigest, Manifest, digest_file, read_manifest
from registry import checkpoints, commits, garbage, tracing
from registry.commits import PublishedFile
from registry.db import reading
from registry.errors import BlobNotFound
from registry.leases import Lease
from registry.storage import ArtifactStore
from registry.tables import Checkpoint
from worker.workplace import Workplace

_SPACE_FACTOR = 1.2
_MAX_PUBLISHES = 3


def publish(
    workplace: Workplace, lease: Lease, out_dir: Path, event: IncrementFinished
) -> Checkpoint:
    """Store what the increment left and commit it under the lease.

    Raises:
        LeaseLost: it is not this lease's job any more; nothing was committed.
        StorageFull: it does not fit.
        CheckpointCorrupt: the directory is not what its manifest says.
    """
    directory = _inside(out_dir, event.directory)
    manifest = read_manifest(directory)
    digest = digest_file(directory / MANIFEST_NAME)
    if digest.sha256 != event.manifest_sha256:
        raise CheckpointCorrupt(f"{event.directory}: not the manifest that was announced")
    expected = {**manifest.files, MANIFEST_NAME: digest}
    for _ in range(_MAX_PUBLISHES - 1):
        try:
            return _store_and_commit(workplace, lease, directory, manifest, expected)
        except BlobNotFound:
            # The collector has marked a blob, or taken it in the moment between: let it be gone
            # for good before storing it again.
            garbage.delete_marked(workplace.factory, workplace.store)
    return _store_and_commit(workplace, lease, directory, manifest, expected)


def _store_and_commit(
    workplace: Workplace,
    lease: Lease,
    directory: Path,
    manifest: Manifest,
    expected: dict[str, FileDigest],
) -> Checkpoint:
    total = sum(file.num_bytes for file in expected.values())
    workplace.store.require_space(int(total * _SPACE_FACTOR))
    files = [
        _store_file(workplace.store, directory, name, digest)
        for name, digest in sorted(expected.items())
    ]
    digest = expected[MANIFEST_NAME].sha256

    def commit(session: Session) -> Checkpoint:
        checkpoint = commits.commit_increment(session, lease, manifest, digest, files)
        # From here on nobody deletes these blobs; one that went before is missing now.
        for file in files:
            if not workplace.store.exists(file.sha256):
                raise BlobNotFound(f"blob {file.sha256} was collected before it was committed")
        return checkpoint

    with tracing.span(
        "commit", job_id=lease.job_id, increment=manifest.increment, fence=lease.fence
    ):
        return workplace.apply(commit)


def _store_file(
    store: ArtifactStore, directory: Path, name: str, expected: FileDigest
) -> PublishedFile:
    blob = store.put_file(_inside(directory, name))
    if (blob.sha256, blob.num_bytes) != (expected.sha256, expected.num_bytes):
        raise CheckpointCorrupt(
            f"{name}: sha256 {blob.sha256}, the manifest says {expected.sha256}"
        )
    return PublishedFile(path=name, sha256=blob.sha256, num_bytes=blob.num_bytes)


def _inside(directory: Path, name: str) -> Path:
    relative = PurePosixPath(name)
    path = directory / relative
    if (
        relative.is_absolute()
        or ".." in relative.parts
        or not path.resolve().is_relative_to(directory.resolve())
    ):
        raise CheckpointCorrupt(f"{name!r} leads out of its directory")
    return path


def materialise(workplace: Workplace, checkpoint_id: str, directory: Path) -> Path:
    """The files of a checkpoint as a directory, every one verified.

    Raises:
        BlobNotFound: a file is gone.
        BlobCorrupt: a file does not hash to its name.
    """
    with reading(workplace.factory) as session:
        files = checkpoints.files(session, checkpoint_id)
    for file in files:
        workplace.store.fetch(file.sha256, _inside(directory, file.path))
    return directory
