"""Exports against their bars: `python -m bench.exports --model DIR --work DIR [--stage STAGE]`.

The model is cut layer by layer to 20 % and 40 % fewer decoder parameters, without training, and
exported; parity is measured in each export's own engine, speed beside the dense model in the same
engine. Stages keep what they made in the work directory, so that each can be run by itself.
"""

import argparse
import json
import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import gguf
import torch

from pruning.allocation.allocate import allocate
from pruning.errors import ExportRefused
from pruning.export.export import EXPORTS, export_checkpoint, export_directory, open_canonical
from pruning.export.gguf import GgufType, export_gguf
from pruning.export.parity import TEXTS, ParityRecord, read_records
from pruning.export.speed import SpeedRecord, measure_beside
from pruning.importance.measure import measure_importance
from pruning.models.geometry import (
    count_parameters,
    count_prunable_parameters,
    geometry_of,
    unpruned_plan,
)
from pruning.models.load import LoadedModel, load_base_model
from pruning.recipe_parts.calibration import Calibration
from pruning.recipe_parts.method import Allocation, Importance
from pruning.recipe_parts.model import PathModel
from pruning.recipe_parts.output import ExportFormat
from pruning.surgery import apply_plan
from tests.pruning.export.tiny import save_tiny_checkpoint

RESULTS = Path(__file__).parent / "results" / "exports.json"
SPARSITIES = (0.2, 0.4)
PARITY_BARS: dict[ExportFormat, float] = {
    "gguf:f32": 1e-3,
    "padded": 1e-4,
    "remote_code": 1e-5,
    "onnx": 1e-4,
}
TINY = ("qwen2", "qwen3", "mistral")
SPEED_BAR = 0.85
"""Speed-up in decoding, as a share of how many fewer bytes are read per token."""


@dataclass(frozen=True)
class Row:
    """One bar, or none, and what was measured."""

    name: str
    bar: str
    figure: float | str
    met: bool | None


def cut(loaded: LoadedModel, sparsity: float) -> None:
    """Remove `sparsity` of the decoder parameters, those that first-order Taylor ranks last."""
    model = loaded.model
    ids = torch.cat([loaded.tokenizer(text, return_tensors="pt").input_ids[0] for text in TEXTS])
    batch_BT = ids[: ids.numel() // 32 * 32].view(-1, 32)
    importance = Importance(
        kind="taylor", calibration=Calibration(num_samples=len(batch_BT), sequence_length=32)
    )
    scores = measure_importance(model, [batch_BT], importance)
    base = unpruned_plan(model)
    target = count_parameters(model) - round(sparsity * count_prunable_parameters(model))
    plan, _ = allocate(
        scores,
        base,
        geometry_of(model),
        target_num_parameters=target,
        allocation=Allocation(),
        axes=("intermediate", "kv_group"),
        debt=None,
    )
    apply_plan(model, plan, previous=base)


def cut_checkpoint(model: Path, work: Path, sparsity: float) -> Path:
    """The model without `sparsity` of its decoder parameters, made once."""
    checkpoint = work / f"cut-{sparsity:.0%}"
    if not (checkpoint / "tokenizer.json").is_file():
        loaded = load_base_model(PathModel(path=str(model)), dtype=torch.float32)
        if sparsity:
            cut(loaded, sparsity)
        loaded.model.save_pretrained(checkpoint)
        loaded.tokenizer.save_pretrained(checkpoint)
    return checkpoint


def parity_rows(name: str, checkpoint: Path, exports: dict[ExportFormat, float]) -> list[Row]:
    """Each export of one checkpoint, proved by its engine."""
    rows = []
    for export, bar in exports.items():
        what = f"{export} of {name}: largest difference"
        try:
            difference = _proof(checkpoint, export).max_difference
            rows.append(Row(what, f"<= {bar:g}", difference, difference <= bar))
        except ExportRefused as refusal:
            rows.append(Row(what, f"<= {bar:g}", refusal.message[:200], met=False))
    return rows


def _proof(checkpoint: Path, export: ExportFormat) -> ParityRecord:
    """The record beside the export, which is made once."""
    directory = export_directory(checkpoint / EXPORTS, export)
    if directory.is_dir():
        return read_records(directory)[0]
    return export_checkpoint(open_canonical(checkpoint), export, checkpoint / EXPORTS).records[0]


def speed_rows(
    model: Path, work: Path, weights: GgufType, *, threads: int | None = None
) -> list[Row]:
    """Decoding with the smaller model beside the dense one, and what was to be expected."""
    dense, pruned = (_gguf_of(model, work, sparsity, weights) for sparsity in (0.0, SPARSITIES[-1]))
    record = measure_beside("llama.cpp", pruned, dense, threads=threads)
    speed_up = record.export.decode_tokens_per_second / record.dense.decode_tokens_per_second
    possible = bytes_read(dense) / bytes_read(pruned)
    share = speed_up / possible
    with_threads = f", {record.protocol['threads']} threads"
    name = f"{weights} GGUF of the model cut by {SPARSITIES[-1]:.0%}{with_threads}"
    return [
        Row(f"{name}: bytes read per token, times fewer", "", possible, met=None),
        Row(f"{name}: decoding, times faster", "", speed_up, met=None),
        Row(
            f"{name}: share of what the bytes promise", f">= {SPEED_BAR}", share, share >= SPEED_BAR
        ),
        *_figures(name, record),
    ]


def _figures(name: str, record: SpeedRecord) -> list[Row]:
    pairs = {"dense": record.dense, "cut": record.export}
    return [
        Row(f"{name}: {measured}, {which}", "", value, met=None)
        for which, speed in pairs.items()
        for measured, value in speed.model_dump().items()
    ]


def _gguf_of(model: Path, work: Path, sparsity: float, weights: GgufType) -> Path:
    path = work / f"{sparsity:.0%}-{weights}.gguf"
    if not path.is_file():
        checkpoint = cut_checkpoint(model, work, sparsity)
        loaded = load_base_model(PathModel(path=str(checkpoint)), dtype=torch.float32)
        export_gguf(loaded.model, checkpoint, path, weights=weights)
    return path


def bytes_read(path: Path) -> int:
    """Weights that every token reads: all of them where the head shares the embeddings."""
    tensors = gguf.GGUFReader(path).tensors
    tied = all(tensor.name != "output.weight" for tensor in tensors)
    return sum(int(t.n_bytes) for t in tensors if tied or t.name != "token_embd.weight")


def stages(model: Path, work: Path) -> dict[str, Callable[[], list[Row]]]:
    """What can be run by itself, in the order of the issue's bars."""

    def parity(sparsity: float, export: ExportFormat) -> list[Row]:
        checkpoint = cut_checkpoint(model, work, sparsity)
        name = f"{model.name} cut by {sparsity:.0%}"
        rows = parity_rows(name, checkpoint, {export: PARITY_BARS[export]})
        in_llama_cpp = export == "gguf:f32" and sparsity == SPARSITIES[-1]
        return rows + (speed_rows(model, work, "q8_0") if in_llama_cpp else [])

    def tiny(family: str) -> list[Row]:
        checkpoint = save_tiny_checkpoint(work / family, family)
        return parity_rows(f"tiny {family}", checkpoint, {"gguf:f32": 1e-3, "onnx": 1e-4})

    return {
        **{
            f"{export} at {sparsity:.0%}": partial(parity, sparsity, export)
            for sparsity in SPARSITIES
            for export in PARITY_BARS
        },
        **{f"tiny {family}": partial(tiny, family) for family in TINY},
        # On a machine that others use too, two threads wait for whichever is off its core.
        "speed with one thread": partial(speed_rows, model, work, "q8_0", threads=1),
    }


def main() -> None:
    """Print the table and store it; a stage run by itself replaces its own rows alone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, metavar="DIR")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR")
    parser.add_argument("--stage", metavar="STAGE", help="one of them; all by default")
    parsed = parser.parse_args()
    for name, measure in stages(parsed.model, parsed.work).items():
        if parsed.stage not in (None, name):
            continue
        load = os.getloadavg()[0]
        rows = measure()
        for row in rows:
            figure = row.figure if isinstance(row.figure, str) else f"{row.figure:.4g}"
            verdict = {True: "met", False: "MISSED", None: ""}[row.met]
            print(f"{verdict:7} {row.bar:8} {figure:>12} {row.name}", flush=True)
        stored = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
        stored[name] = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "model": parsed.model.name,
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {load:.1f} before",
            "rows": [asdict(row) for row in rows],
        }
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(stored, indent=2) + "\n")


if __name__ == "__main__":
    main()
