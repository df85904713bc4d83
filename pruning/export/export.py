"""Exports of a checkpoint: each written, run by its own engine, and published only if it holds."""

import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from safetensors import safe_open
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from pruning.errors import ExportRefused
from pruning.export.engine import Engine
from pruning.export.gguf import GgufType, check_config, export_gguf
from pruning.export.nemotron_nas import check_family, export_nemotron_nas
from pruning.export.onnx import export_onnx
from pruning.export.padded import pad_to_equal_layers
from pruning.export.parity import ParityRecord, Tolerance, check_parity, write_records
from pruning.export.remote_code import export_remote_code
from pruning.export.speed import SpeedRecord, measure_beside, write_speed
from pruning.models.load import load_base_model
from pruning.recipe import Recipe
from pruning.recipe_parts.model import ModelSource, PathModel
from pruning.recipe_parts.output import ExportFormat

EXPORTS = "exports"
"""Subdirectory of a checkpoint with what was derived from it."""

_SAME_NUMBERS: Tolerance = ("max_difference", 1e-3)
_TOLERANCES: dict[str, Tolerance] = {
    "padded": ("max_difference", 1e-4),
    "remote_code": ("max_difference", 1e-5),
    "onnx": ("max_difference", 1e-4),
    "nemotron_nas": ("max_difference", 1e-4),
    "gguf:f32": _SAME_NUMBERS,
    # Rounding weights costs what it costs; these bounds catch files that are broken, not rounded.
    "gguf:f16": ("divergence", 0.01),
    "gguf:bf16": ("divergence", 0.02),
    "gguf:q8_0": ("divergence", 0.1),
    "gguf:q5_1": ("divergence", 0.5),
    "gguf:q5_0": ("divergence", 0.5),
    "gguf:q4_1": ("divergence", 1.0),
    "gguf:q4_0": ("divergence", 1.0),
}


@dataclass(frozen=True, kw_only=True)
class Canonical:
    """A checkpoint opened as its own files say, in fp32: what every export must equal."""

    checkpoint: Path
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    dtype: torch.dtype


@dataclass(frozen=True, kw_only=True)
class Exported:
    """One published export, its proofs (of the graph in fp32, and of the file as it is), and its
    speed where it was measured.
    """

    format: ExportFormat
    directory: Path
    records: tuple[ParityRecord, ...]
    speed: SpeedRecord | None = None

    @property
    def engine(self) -> Engine:
        """Who runs it."""
        return engine_of(self.format)

    @property
    def artifact(self) -> Path:
        """What its engine opens."""
        return artifact_of(self.format, self.directory)


def open_canonical(checkpoint: Path) -> Canonical:
    """Open a checkpoint directory.

    Raises:
        InvalidModel: it cannot be opened.
    """
    loaded = load_base_model(PathModel(path=str(checkpoint)), dtype=torch.float32)
    dtype = _stored_dtype(checkpoint)
    loaded.model.config.dtype = dtype
    return Canonical(
        checkpoint=checkpoint, model=loaded.model, tokenizer=loaded.tokenizer, dtype=dtype
    )


def export_all(
    checkpoint: Path, exports: Sequence[ExportFormat], *, dense: ModelSource | None = None
) -> tuple[list[Exported], list[ExportRefused]]:
    """Every export that holds, in the checkpoint's `exports/`, and why the others do not.

    With `dense`, the model it was pruned from, each is timed beside it in the same engine.
    """
    exported: list[Exported] = []
    refusals: list[ExportRefused] = []
    if not exports:
        return exported, refusals
    canonical = open_canonical(checkpoint)
    for export in exports:
        try:
            exported.append(export_checkpoint(canonical, export, checkpoint / EXPORTS))
        except ExportRefused as refusal:
            refusals.append(refusal)
    if dense is None or not exported:
        return exported, refusals
    timed, untimed = time_exports(exported, canonical, dense)
    return timed, refusals + untimed


def time_exports(
    exports: Sequence[Exported], canonical: Canonical, dense: ModelSource
) -> tuple[list[Exported], list[ExportRefused]]:
    """Each export with its speed beside the dense model's in the same engine and format.

    Also why some have none. The figures are stored beside the artifact.
    """
    model = load_base_model(dense, dtype=torch.float32).model
    beside = replace(canonical, model=model)
    timed: list[Exported] = []
    refusals: list[ExportRefused] = []
    for export in exports:
        try:
            timed.append(_timed(export, beside))
        except ExportRefused as refusal:
            refusals.append(refusal)
            timed.append(export)
    return timed, refusals


def _timed(export: Exported, dense: Canonical) -> Exported:
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        _write_dense(dense, export.format, directory)
        record = measure_beside(
            export.engine, export.artifact, artifact_of(export.format, directory)
        )
    write_speed(record, export.directory)
    return replace(export, speed=record)


def _write_dense(dense: Canonical, export: ExportFormat, directory: Path) -> None:
    kind, _, weights = export.partition(":")
    if kind == "gguf":
        path = artifact_of(export, directory)
        export_gguf(dense.model, dense.checkpoint, path, weights=cast(GgufType, weights))
    elif kind == "onnx":
        export_onnx(dense.model, artifact_of(export, directory))
    else:
        dense.model.to(dense.dtype).save_pretrained(directory)
        dense.model.float()


def export_directory(out: Path, export: ExportFormat) -> Path:
    """Where an export lies under `out`."""
    return out / re.sub(r"[^a-z0-9_]", "-", export)


def artifact_of(export: ExportFormat, directory: Path) -> Path:
    """What the engine of an export opens, of what lies in its directory."""
    names = {"gguf": "model.gguf", "onnx": "model.onnx"}
    return directory / names.get(export.partition(":")[0], "")


def engine_of(export: ExportFormat) -> Engine:
    """Who runs an export."""
    engines: dict[str, Engine] = {
        "gguf": "llama.cpp",
        "onnx": "onnxruntime",
        "padded": "transformers",
        "remote_code": "transformers-remote-code",
        "nemotron_nas": "vllm",
    }
    return engines[export.partition(":")[0]]


def check_exportable(config: PretrainedConfig, recipe: Recipe) -> None:
    """Refuse before a run what could not be exported after it.

    Raises:
        ExportRefused: an engine is asked for that has nothing to run this family and layout with.
    """
    gguf = any(export.startswith("gguf") for export in recipe.output.exports)
    if gguf or "llama.cpp" in recipe.serve_with:
        check_config(config, equal=recipe.allocation.layout == "uniform")
    if "nemotron_nas" in recipe.output.exports:
        check_family(config)


def export_checkpoint(canonical: Canonical, export: ExportFormat, out: Path) -> Exported:
    """Write one export under `out`, prove it, and only then give it its name.

    Raises:
        ExportRefused: it cannot be written, run, or is not the same model; nothing is left then.
    """
    if getattr(canonical.model.config, "carries_stream", False):
        raise ExportRefused(
            f"{export}: no other engine has a place for shortcuts between blocks",
            hint="slice with rotation 'global'",
        )
    directory = export_directory(out, export)
    unfinished = out / f".{directory.name}"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        records = _write(canonical, export, unfinished)
        write_records(records, unfinished)
        shutil.rmtree(directory, ignore_errors=True)
        unfinished.replace(directory)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return Exported(format=export, directory=directory, records=records)


def _write(canonical: Canonical, export: ExportFormat, directory: Path) -> tuple[ParityRecord, ...]:
    kind, _, weights = export.partition(":")
    if kind == "gguf":
        return _gguf(canonical, cast(GgufType, weights), directory)
    if kind == "onnx":
        path = artifact_of(export, directory)
        export_onnx(canonical.model, path)
        canonical.tokenizer.save_pretrained(directory)
        return (_prove(canonical, export, path, precision="float32"),)
    if kind == "nemotron_nas":
        export_nemotron_nas(canonical.model, directory)
        canonical.tokenizer.save_pretrained(directory)
    elif kind == "remote_code":
        export_remote_code(canonical.model, canonical.checkpoint, directory)
    else:
        padded = pad_to_equal_layers(canonical.model)
        padded.to(canonical.dtype).save_pretrained(directory)
        canonical.tokenizer.save_pretrained(directory)
    return (_prove(canonical, export, directory, precision="float32"),)


def _gguf(canonical: Canonical, weights: GgufType, directory: Path) -> tuple[ParityRecord, ...]:
    """Prove graph and tokenizer on an fp32 file first: rounded weights would hide a wrong graph."""
    plain, path = directory / "plain.gguf", directory / "model.gguf"
    export_gguf(canonical.model, canonical.checkpoint, plain, weights="f32")
    records = (_prove(canonical, "gguf:f32", plain, precision="f32"),)
    if weights == "f32":
        plain.replace(path)
        return records
    plain.unlink()
    export_gguf(canonical.model, canonical.checkpoint, path, weights=weights)
    export = cast(ExportFormat, f"gguf:{weights}")
    return (*records, _prove(canonical, export, path, precision=weights))


def _prove(
    canonical: Canonical, export: ExportFormat, artifact: Path, *, precision: str
) -> ParityRecord:
    return check_parity(
        artifact,
        engine_of(export),
        model=canonical.model,
        tokenizer=canonical.tokenizer,
        precision=precision,
        tolerance=_TOLERANCES[export],
    )


def _stored_dtype(checkpoint: Path) -> torch.dtype:
    path = next(iter(sorted(checkpoint.glob("*.safetensors"))))
    with safe_open(path, framework="pt") as file:
        dtype: torch.dtype = file.get_tensor(next(iter(file.keys()))).dtype
    return dtype
