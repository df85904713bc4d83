"""Exports of a real model against their bars: `python -m bench.exports --model DIR`.

The model is cut layer by layer to 20 % and 40 % fewer decoder parameters, without training, and
exported; parity is measured in each export's own engine, speed in llama.cpp beside the dense model.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import gguf
import torch

from pruning.allocation.allocate import allocate
from pruning.errors import ExportRefused
from pruning.export.export import export_checkpoint, open_canonical
from pruning.export.gguf import export_gguf
from pruning.export.parity import TEXTS
from pruning.importance.measure import measure_importance
from pruning.models.geometry import (
    count_parameters,
    count_prunable_parameters,
    geometry_of,
    unpruned_plan,
)
from pruning.models.load import LoadedModel, load_base_model
from pruning.recipe import Allocation, Calibration, ExportFormat, Importance, PathModel
from pruning.surgery import apply_plan

RESULTS = Path(__file__).parent / "results" / "exports.json"
SPARSITIES = (0.2, 0.4)
PARITY_BARS: dict[ExportFormat, float] = {"gguf:f32": 1e-3, "padded": 1e-4, "onnx": 1e-4}
SPEED_BAR = 0.85
"""Speed-up in decoding, as a share of how many fewer bytes are read per token."""

_DECODE = """
import json, sys
from pathlib import Path
from pruning.export.engine import open_llama_cpp
server = open_llama_cpp(
    Path(sys.argv[1]), context=256, threads=int(sys.argv[2]), exact_cache=False
)
request = {"prompt": list(range(100, 132)), "n_predict": 64, "ignore_eos": True,
           "temperature": 0.0, "cache_prompt": False}
server.handle_completions(request)
rates = [server.handle_completions(request)["timings"] for _ in range(3)]
print(json.dumps([max(r["predicted_per_second"] for r in rates),
                  max(r["prompt_per_second"] for r in rates)]))
"""


@dataclass(frozen=True)
class Row:
    """One bar and what was measured."""

    name: str
    bar: str
    figure: float | str
    met: bool


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


def parity_rows(checkpoint: Path, sparsity: float, out: Path) -> list[Row]:
    """Each export of one checkpoint, proved by its engine."""
    canonical = open_canonical(checkpoint)
    rows = []
    for export, bar in PARITY_BARS.items():
        name = f"{export} of the model cut by {sparsity:.0%}, largest difference"
        try:
            record = export_checkpoint(canonical, export, out).records[0]
            difference = record.max_difference
            rows.append(Row(name, f"<= {bar:g}", difference, difference <= bar))
        except ExportRefused as refusal:
            rows.append(Row(name, f"<= {bar:g}", refusal.message[:120], met=False))
    return rows


def decode_rate(path: Path, threads: int) -> float:
    """Tokens per second, the best of three, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", _DECODE, path, str(threads)],
        capture_output=True,
        text=True,
        check=True,
    )
    rate: float = json.loads(done.stdout.splitlines()[-1])[0]
    return rate


def speed_row(dense: Path, pruned: Path, threads: int) -> Row:
    """Decode speed-up against the bytes read per token, runs interleaved."""
    rates = [(decode_rate(dense, threads), decode_rate(pruned, threads)) for _ in range(3)]
    speed_up = max(rate for _, rate in rates) / max(rate for rate, _ in rates)
    possible = _bytes_read(dense) / _bytes_read(pruned)
    name = f"q8_0 decode speed-up / bytes ratio ({speed_up:.2f}x of {possible:.2f}x)"
    return Row(name, f">= {SPEED_BAR}", speed_up / possible, speed_up / possible >= SPEED_BAR)


def _bytes_read(path: Path) -> int:
    """Weights that every token reads: all of them where the head shares the embeddings."""
    tensors = gguf.GGUFReader(path).tensors
    tied = all(tensor.name != "output.weight" for tensor in tensors)
    return sum(int(t.n_bytes) for t in tensors if tied or t.name != "token_embd.weight")


def measure(model: Path, threads: int) -> list[Row]:
    """Every row, in the order of the issue."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch_name:
        scratch = Path(scratch_name)
        dense, pruned = scratch / "dense.gguf", scratch / "pruned.gguf"
        for sparsity in (0.0, *SPARSITIES):
            loaded = load_base_model(PathModel(path=str(model)), dtype=torch.float32)
            if sparsity == 0.0:
                export_gguf(loaded.model, model, dense, weights="q8_0")
                continue
            cut(loaded, sparsity)
            checkpoint = scratch / f"cut-{sparsity}"
            loaded.model.save_pretrained(checkpoint)
            loaded.tokenizer.save_pretrained(checkpoint)
            rows += parity_rows(checkpoint, sparsity, scratch / "exports")
            if sparsity == SPARSITIES[-1]:
                export_gguf(loaded.model, checkpoint, pruned, weights="q8_0")
        rows.append(speed_row(dense, pruned, threads))
    return rows


def main() -> None:
    """Print the table and store it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, metavar="DIR")
    parser.add_argument("--threads", type=int, default=2)
    parsed = parser.parse_args()
    rows = measure(parsed.model, parsed.threads)
    for row in rows:
        figure = row.figure if isinstance(row.figure, str) else f"{row.figure:.3g}"
        print(f"{'met' if row.met else 'MISSED':7} {row.bar:10} {figure:12} {row.name}")
    RESULTS.parent.mkdir(exist_ok=True)
    result = {"at": datetime.now(UTC).isoformat(), "model": parsed.model.name}
    RESULTS.write_text(json.dumps({**result, "rows": [asdict(r) for r in rows]}, indent=2) + "\n")


if __name__ == "__main__":
    main()
