"""The manifest beside every checkpoint: where it came from, what it measures, what it hashes to.

Torch-free: the worker publishes, and the client verifies, from this file alone.
"""

import hashlib
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from pruning.errors import CheckpointCorrupt
from pruning.events import EvaluationStage, LayerWidths, Outcome
from pruning.plan import PruningPlan
from pruning.recipe import Recipe

MANIFEST_NAME = "manifest.json"
TRAINING_STATE = "training_state"
"""Subdirectory with what resuming needs and using the model does not."""

_CHUNK_BYTES = 1 << 20


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class FileDigest(_Part):
    sha256: str
    num_bytes: int


class Measurement(_Part):
    """One number and how it was measured; `rows` are the outcomes it is the mean of."""

    stage: EvaluationStage
    increment: int
    suite: str
    metric: str
    value: float
    stderr: float | None = None
    num_samples: int | None = None
    protocol: dict[str, str | int | float | bool | None]
    rows: str | None = None


class Lineage(_Part):
    """From which model, through which checkpoint."""

    model: str
    model_revision: str | None
    parent_manifest_sha256: str | None


class Manifest(_Part):
    """Everything a checkpoint says of itself. `measurements` holds the run's history up to here."""

    format_version: Literal[1] = 1
    increment: int
    step: int
    num_tokens: int
    num_parameters: int
    base_num_parameters: int
    target_num_parameters: int
    num_bytes: int
    dtype: str
    final: bool
    outcome: Outcome | None
    widths: tuple[LayerWidths, ...]
    measurements: tuple[Measurement, ...]
    lineage: Lineage
    data_fingerprint: str
    recipe: Recipe
    plan: PruningPlan
    versions: dict[str, str]
    created_at: datetime
    files: dict[str, FileDigest]

    def verify(self, directory: Path, *, training_state: bool = True) -> int:
        """Hash every listed file under `directory`; how many there were.

        `training_state=False` passes over what only resuming needs: downloads leave it out.

        Raises:
            CheckpointCorrupt: a file is missing, shorter or longer, or hashes differently.
        """
        expected_files = {
            name: digest
            for name, digest in self.files.items()
            if training_state or not name.startswith(f"{TRAINING_STATE}/")
        }
        for name, expected in expected_files.items():
            path = directory / name
            if not path.is_file():
                raise CheckpointCorrupt(f"{name}: missing from {directory}")
            found = digest_file(path)
            if found != expected:
                raise CheckpointCorrupt(
                    f"{name}: sha256 {found.sha256} ({found.num_bytes} bytes), "
                    f"the manifest says {expected.sha256} ({expected.num_bytes} bytes)"
                )
        return len(expected_files)


def digest_file(path: Path) -> FileDigest:
    """The sha256 and length of a file, read in pieces."""
    digest = hashlib.sha256()
    num_bytes = 0
    with path.open("rb") as file:
        while piece := file.read(_CHUNK_BYTES):
            digest.update(piece)
            num_bytes += len(piece)
    return FileDigest(sha256=digest.hexdigest(), num_bytes=num_bytes)


def write_manifest(manifest: Manifest, directory: Path) -> str:
    """Write `manifest.json`, last of all files of a checkpoint, and return its sha256."""
    path = directory / MANIFEST_NAME
    path.write_text(manifest.model_dump_json(indent=None), encoding="utf-8")
    return digest_file(path).sha256


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a checkpoint directory.

    Raises:
        CheckpointCorrupt: there is none, or it cannot be read.
    """
    path = directory / MANIFEST_NAME
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointCorrupt(f"{path}: {error}") from error
