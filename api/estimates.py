"""What a request would lead to, said before it is taken."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from api.deps import Principal
from api.model_configs import ModelConfig, ModelConfigs
from api.schemas.estimates import (
    EstimatedTime,
    EstimateRead,
    ForecastRead,
    ModelRead,
    SizeRead,
)
from pruning.estimate import Estimate, estimate
from pruning.recipe import Recipe
from pruning.recipe_parts.data import DataSource, InlineData, PathData, UploadData
from registry import credentials, files
from registry.db import SessionFactory
from registry.estimates import Pace
from registry.settings import Settings
from registry.tenancy import reading_of

_BYTES_PER_TOKEN = 4.0
"""Of English text and code under vocabularies of 30,000 entries and more; within a third."""
_MAX_FILES = 1000


@dataclass(frozen=True)
class Foretold:
    """An estimate and the configuration it was made from."""

    estimate: Estimate
    config: ModelConfig


def foretell(
    recipe: Recipe,
    configs: ModelConfigs,
    file_bytes: Mapping[str, int],
    *,
    token: str | None = None,
) -> Foretold | None:
    """What the recipe would lead to, or None when its model cannot be looked at from here.

    `file_bytes` has the length of every uploaded file that the recipe names, `token` is the secret
    of the credential that its model names.

    Raises:
        PruningError: the model or its target would be refused by the run.
    """
    config = configs.find(recipe.model, token=token)
    if config is None:
        return None
    tokens = corpus_tokens(recipe, file_bytes)
    return Foretold(estimate(recipe, config.values, corpus_tokens=tokens), config)


def file_sizes(sessions: SessionFactory, who: Principal, recipe: Recipe) -> dict[str, int]:
    """The lengths of the uploaded files that a recipe names, in bytes.

    Raises:
        FileNotUsable: one is not there, or not whole.
    """
    if not files.named_in(recipe):
        return {}
    with reading_of(sessions, who.tenant_id) as session:
        rows = files.usable(session, who.tenant_id, recipe)
        return {row.id: row.size_bytes or 0 for row in rows}


def model_token(
    sessions: SessionFactory, who: Principal, recipe: Recipe, settings: Settings
) -> str | None:
    """The secret of the credential that the recipe names, if it names one.

    Raises:
        CredentialNotUsable: there is none of that id.
    """
    if recipe.credential is None:
        return None
    with reading_of(sessions, who.tenant_id) as session:
        return credentials.of_recipe(session, who.tenant_id, recipe, settings.installation_secret)


def corpus_tokens(recipe: Recipe, file_bytes: Mapping[str, int]) -> int | None:
    """About how many tokens the training text has; None where it is not at hand."""
    total = 0.0
    for domain in recipe.data.train:
        num_bytes = None if domain.max_documents else _num_bytes(domain.source, file_bytes)
        if num_bytes is None:
            return None
        total += num_bytes / _BYTES_PER_TOKEN
    return round(total)


def _num_bytes(source: DataSource, file_bytes: Mapping[str, int]) -> int | None:
    if isinstance(source, InlineData):
        return sum(len(document.encode()) for document in source.documents)
    if isinstance(source, PathData):
        return _bytes_on_disk(Path(source.path))
    if isinstance(source, UploadData):
        return file_bytes.get(source.file)
    return None


def _bytes_on_disk(path: Path) -> int | None:
    try:
        sizes = list(_file_sizes(path))
    except OSError:
        return None
    return sum(sizes) if 0 < len(sizes) <= _MAX_FILES else None


def _file_sizes(path: Path) -> Iterator[int]:
    if path.is_file():
        yield path.stat().st_size
        return
    with os.scandir(path) as entries:
        for count, entry in enumerate(entries):
            if count > _MAX_FILES:
                return
            if entry.is_file():
                yield entry.stat().st_size


def read_estimate(
    foretold: Foretold, pace: Pace | None, forecasts: Sequence[ForecastRead]
) -> EstimateRead:
    """The estimate as it is answered."""
    found = foretold.estimate
    return EstimateRead(
        model=ModelRead(
            model_type=found.model_type,
            revision=foretold.config.revision,
            params=found.num_parameters,
            prunable_params=found.num_prunable_parameters,
            size_bytes=found.num_parameters * found.bytes_per_parameter,
        ),
        targets=[_size(found, target) for target in found.targets],
        floor=_size(found, found.floor_num_parameters),
        increments=list(found.increments),
        tokens=found.num_tokens,
        calibration_tokens=found.num_calibration_tokens,
        peak_memory_bytes=_memory(found, pace),
        storage_bytes=found.storage_bytes,
        time=EstimatedTime(
            estimate_available=(seconds := _seconds(found, pace)) is not None,
            seconds=seconds,
            jobs=pace.num_jobs if pace else 0,
            device=pace.device if pace else None,
        ),
        forecast=list(forecasts),
    )


def summary_of(foretold: Foretold, pace: Pace | None) -> dict[str, Any]:
    """What a job keeps of it, to be held against what comes."""
    found = foretold.estimate
    return {
        "params": found.final_num_parameters,
        "size_bytes": found.final_num_parameters * found.bytes_per_parameter,
        "increments": len(found.increments),
        "tokens": found.num_tokens,
        "peak_memory_bytes": _memory(found, pace),
        "storage_bytes": found.storage_bytes,
        "seconds": _seconds(found, pace),
    }


def _memory(found: Estimate, pace: Pace | None) -> int:
    return found.peak_memory_bytes(pace.device if pace else None)


def _seconds(found: Estimate, pace: Pace | None) -> float | None:
    if pace is None:
        return None
    return pace.seconds(
        num_parameters=found.num_parameters,
        sizes=found.increments,
        num_tokens=found.num_tokens,
        num_calibration_tokens=found.num_calibration_tokens,
    )


def _size(found: Estimate, num_parameters: int) -> SizeRead:
    return SizeRead(
        params=num_parameters,
        size_bytes=num_parameters * found.bytes_per_parameter,
        sparsity=(found.num_parameters - num_parameters) / found.num_prunable_parameters,
    )
