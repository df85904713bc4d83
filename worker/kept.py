"""What a killed child had kept of the increment it was in, from one attempt to the next.

It stays on this host: another one that takes the job over begins the increment anew.
"""

import logging
import shutil
from contextlib import suppress
from pathlib import Path

from pruning.errors import CheckpointCorrupt
from pruning.manifest import MANIFEST_NAME, read_manifest

_PARTIAL = "partial-*"
_KEPT = "kept"

logger = logging.getLogger(__name__)


def rescue(job_dir: Path) -> None:
    """Leave of a job's directory no more than the newest increment in progress."""
    found = [*job_dir.glob(f"*/out/{_PARTIAL}"), *job_dir.glob(f"{_KEPT}/{_PARTIAL}")]
    whole = [path for path in found if (path / MANIFEST_NAME).is_file()]
    if not whole:
        shutil.rmtree(job_dir, ignore_errors=True)
        return
    newest = max(whole, key=lambda path: (path / MANIFEST_NAME).stat().st_mtime_ns)
    safe = newest.replace(job_dir / newest.name)
    for other in job_dir.iterdir():
        if other != safe:
            shutil.rmtree(other, ignore_errors=True)
    (job_dir / _KEPT).mkdir()
    safe.replace(job_dir / _KEPT / safe.name)


def leave(directory: Path, *, goes_on: bool) -> None:
    """Remove the directory of an attempt that is over; of a job that `goes_on`, keep its newest
    increment in progress.

    Only what is this attempt's own: where its lease was lost, another may be at work beside it.
    """
    kept_dir = directory.parent / _KEPT
    whole = [p for p in directory.glob(f"out/{_PARTIAL}") if (p / MANIFEST_NAME).is_file()]
    if goes_on and whole:
        shutil.rmtree(kept_dir, ignore_errors=True)
        kept_dir.mkdir()
        newest = max(whole, key=lambda path: (path / MANIFEST_NAME).stat().st_mtime_ns)
        newest.replace(kept_dir / newest.name)
    shutil.rmtree(directory, ignore_errors=True)
    if not goes_on:
        shutil.rmtree(kept_dir, ignore_errors=True)
    with suppress(OSError):  # Not empty, or gone already.
        directory.parent.rmdir()


def hand_over(job_dir: Path, out_dir: Path) -> Path | None:
    """Put what was rescued where the next child keeps its own, and looks for it.

    The child itself sees whether it follows the checkpoint that it is told to go on from. That of
    the first increment follows none, and is returned: a job without any can go on from it.
    """
    for path in (job_dir / _KEPT).glob(_PARTIAL):
        try:
            manifest = read_manifest(path)
            manifest.verify(path)
        except CheckpointCorrupt as error:
            logger.warning("%s is not used: %s", path.name, error)
            continue
        handed_over = path.replace(out_dir / path.name)
        return handed_over if manifest.lineage.parent_manifest_sha256 is None else None
    return None
