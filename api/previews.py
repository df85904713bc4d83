"""Reaching the text and the tokenizer of a preview from this process."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from api.errors import Problem
from pruning.recipe_parts.data import Data, DataSource, PathData, UploadData
from pruning.recipe_parts.model import ModelSource, PathModel
from registry.settings import Settings
from registry.storage import ArtifactStore
from registry.tables import UploadedFile

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_MAX_FETCH_BYTES = 64 << 20
"""Of an upload that is not on this disk."""
_TOKENIZER = "tokenizer.json"


@contextmanager
def uploads_as_paths(
    data: Data, rows: Mapping[str, UploadedFile], store: ArtifactStore
) -> Iterator[Data]:
    """The text with each uploaded file as a path, for as long as it is looked at.

    Raises:
        Problem: 422, a file is neither on this disk nor small enough to fetch.
    """
    with tempfile.TemporaryDirectory() as directory:

        def localise(source: DataSource) -> DataSource:
            if not isinstance(source, UploadData):
                return source
            path = _at_hand(rows[source.file], store, Path(directory))
            return PathData(path=str(path), **source.model_dump(exclude={"kind", "file"}))

        train = tuple(
            domain.model_copy(update={"source": localise(domain.source)}) for domain in data.train
        )
        yield data.model_copy(update={"train": train})


def _at_hand(row: UploadedFile, store: ArtifactStore, directory: Path) -> Path:
    assert row.sha256 is not None, "only files that are whole are usable"
    path = directory / row.id / row.name
    path.parent.mkdir()
    known = store.local_path(row.sha256)
    if known is not None:
        path.symlink_to(known)
    elif (row.size_bytes or 0) <= _MAX_FETCH_BYTES:
        store.fetch(row.sha256, path)
    else:
        detail = f"{row.id} is larger than {_MAX_FETCH_BYTES >> 20} MiB and not on this disk."
        raise Problem("validation_error", detail, param="data")
    return path


def find_tokenizer(
    model: ModelSource | None, settings: Settings, *, hub_seconds: float
) -> "Tokenizer | None":
    """The model's fast tokenizer, or None where it cannot be had from here."""
    # Only here and below: most requests look at no text, and the process is smaller without.
    from tokenizers import Tokenizer

    path = _find_file(model, settings, hub_seconds)
    try:
        return Tokenizer.from_file(str(path)) if path is not None and path.is_file() else None
    except Exception:  # noqa: BLE001  # The library raises nothing narrower.
        return None


def _find_file(model: ModelSource | None, settings: Settings, hub_seconds: float) -> Path | None:
    if isinstance(model, PathModel):
        path = Path(model.path) / _TOKENIZER
        return path if settings.allows_path(str(path)) else None
    if model is None or not hub_seconds:
        return None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(
            hf_hub_download(model.id, _TOKENIZER, revision=model.revision, etag_timeout=hub_seconds)
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError):
        return None
