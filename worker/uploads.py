"""Uploaded files for a run: fetched, verified, and named in its recipe by their path.

They lie at the same place in every attempt on this host, so that the recipe of a resumed run is
the same.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pruning.errors import InvalidData
from pruning.recipe import Recipe
from pruning.recipe_parts.data import DataSource, PathData, UploadData
from registry import files
from registry.db import reading
from registry.leases import Lease
from registry.status import TERMINAL
from registry.tables import Job, UploadedFile
from worker.workplace import Workplace


def localise_uploads(workplace: Workplace, lease: Lease) -> Mapping[str, Any]:
    """The recipe of a lease with every uploaded file as a path on this host.

    Raises:
        InvalidData: a file was deleted.
        BlobNotFound, BlobCorrupt: its bytes are gone or damaged.
    """
    recipe = Recipe.model_validate(lease.recipe)
    if not files.named_in(recipe):
        return lease.recipe
    with reading(workplace.factory) as session:
        rows = {row.id: row for row in files.list_for_job(session, lease.job_id)}
    directory = _directory(workplace, lease.job_id)

    def localise(source: DataSource) -> DataSource:
        if not isinstance(source, UploadData):
            return source
        path = _fetch(workplace, rows.get(source.file), source.file, directory)
        return PathData(path=str(path), **source.model_dump(exclude={"kind", "file"}))

    return recipe.with_sources(localise).model_dump(mode="json")


def _fetch(workplace: Workplace, row: UploadedFile | None, file_id: str, directory: Path) -> Path:
    if row is None or row.sha256 is None:
        raise InvalidData(f"{file_id} was deleted", param="data")
    path = directory / file_id / row.name
    if not path.is_file():
        part = path.with_name("part")
        workplace.store.fetch(row.sha256, part)
        part.rename(path)
    return path


def drop_uploads(workplace: Workplace, job_id: str) -> None:
    """Remove what was fetched for a job that has ended."""
    directory = _directory(workplace, job_id)
    if not directory.exists():
        return
    with reading(workplace.factory) as session:
        job = session.get(Job, job_id)
        ended = job is None or job.status in TERMINAL
    if ended:
        shutil.rmtree(directory, ignore_errors=True)


def _directory(workplace: Workplace, job_id: str) -> Path:
    return workplace.settings.data_dir / "inputs" / job_id
