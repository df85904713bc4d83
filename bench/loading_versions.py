"""Pruned checkpoints under other versions of transformers: `python -m bench.loading_versions DIR`.

Each DIR holds one version, laid over the environment's torch and peft:
    pip install --target DIR --no-deps 'transformers==5.14.*' torchao
and what that version pins, such as 'huggingface_hub<2' and 'tokenizers<0.23' (torchao alone for the
environment's own version; no extra brings it, because transformers imports it wherever it lies).
Checkpoints of every family, with unequal and with equal layers, are written
by the environment's own version; each version opens them in a process of its own, and must give
the same logits.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from tests.pruning.export.tiny import cut
from tests.pruning.tiny import FAMILIES, make_tiny_model, random_ids

RESULTS = Path(__file__).parent / "results" / "loading_versions.json"

_OPEN = """
import json, pathlib, sys, torch
if sys.argv[4] == "with":
    import espalier.loading
import transformers
torch.set_num_threads(1)
from transformers import AutoModelForCausalLM
transformers.logging.set_verbosity_error()
ids = torch.tensor(json.loads(pathlib.Path(sys.argv[1]).read_text())["ids"])

def gradient(model, checkpointing):
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    model.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
    model.gradient_checkpointing_disable()
    model.eval()
    return next(iter(model.parameters())).grad.clone()

def adapted(directory):
    import peft
    model = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(directory),
        peft.LoraConfig(r=2, target_modules="all-linear"),
    )
    return bool(model(input_ids=ids, labels=ids).loss.isfinite())

def quantised(directory):
    from torchao.quantization import Int8WeightOnlyConfig
    config = transformers.TorchAoConfig(Int8WeightOnlyConfig())
    model = AutoModelForCausalLM.from_pretrained(directory, quantization_config=config)
    return bool(model(input_ids=ids).logits.isfinite().all())

def check(directory, again):
    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    data = bytearray((directory / "logits.bin").read_bytes())
    reference = torch.frombuffer(data, dtype=torch.float32).view_as(logits)
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    prompt = ids[:1, :6]
    plain = model.generate(prompt, **settings, use_cache=False)
    found = {"difference": float((logits - reference).abs().max())}
    for cache in ("dynamic", "static"):
        written = model.generate(prompt, **settings, cache_implementation=cache)
        found[f"{cache} cache"] = torch.equal(plain, written)
    model.save_pretrained(str(again))
    with torch.no_grad():
        second = AutoModelForCausalLM.from_pretrained(again).eval()(input_ids=ids).logits
    found["saved again"] = torch.equal(second, logits)
    found["gradient checkpointing"] = torch.allclose(gradient(model, False), gradient(model, True))
    for name, attempt in (("peft", adapted), ("torchao", quantised)):
        try:
            found[name] = attempt(directory)
        except Exception as error:
            found[name] = f"{type(error).__name__}: {str(error)[:120]}"
    return found

found = {}
for directory in sorted(pathlib.Path(sys.argv[2]).iterdir()):
    try:
        found[directory.name] = check(directory, pathlib.Path(sys.argv[3]) / directory.name)
    except Exception as error:
        found[directory.name] = f"{type(error).__name__}: {str(error)[:160]}"
print(json.dumps({"version": transformers.__version__, "found": found}))
"""


@torch.no_grad()
def write_checkpoints(directory: Path) -> None:
    """Two checkpoints a family, and the logits that each gave before it was saved."""
    for family in FAMILIES:
        for layout in ("per_layer", "uniform"):
            model = make_tiny_model(family)
            cut(model, evenly=layout == "uniform")
            place = directory / f"{family}-{layout}"
            model.save_pretrained(place)
            logits = model(input_ids=random_ids()).logits
            (place / "logits.bin").write_bytes(logits.numpy().tobytes())


def open_all(overlay: Path, checkpoints: Path, scratch: Path, *, loader: str) -> dict[str, Any]:
    """What one version made of the checkpoints, `with` or `without` our loader."""
    request = scratch / "ids.json"
    request.write_text(json.dumps({"ids": random_ids().tolist()}))
    again = scratch / f"again-{overlay.name}"
    done = subprocess.run(
        [sys.executable, "-c", _OPEN, request, checkpoints, again, loader],
        env={**os.environ, "PYTHONPATH": f"{overlay.resolve()}:{Path.cwd()}"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return {"version": overlay.name, "found": {"import": done.stderr[-400:]}}
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


def is_right(found: Any) -> bool:
    """Bit-equal, and everything else works."""
    if not isinstance(found, dict):
        return False
    rest = {name: value for name, value in found.items() if name != "difference"}
    return found["difference"] == 0.0 and all(value is True for value in rest.values())


def main() -> None:
    """Print, per version, what did not open as it was; store everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("overlays", type=Path, nargs="+", metavar="DIR")
    parsed = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch_name:
        scratch = Path(scratch_name)
        write_checkpoints(scratch / "checkpoints")
        write_refused(scratch)
        for overlay in parsed.overlays:
            report = open_all(overlay, scratch / "checkpoints", scratch, loader="with")
            without = open_all(overlay, scratch / "refused", scratch, loader="without")
            found = report["found"]
            bad = {name: what for name, what in found.items() if not is_right(what)}
            version = f"transformers {report['version']}"
            print(f"{version}: {len(found) - len(bad)} of {len(found)} equal", flush=True)
            for name, what in {**bad, "without the loader": without["found"]}.items():
                print(f"  {name}: {what}", flush=True)
            stored = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
            stored[version] = {
                "at": datetime.now(UTC).isoformat(timespec="seconds"),
                "equal": len(found) - len(bad),
                "of": len(found),
                "found": found,
                "without the loader": without["found"],
            }
            RESULTS.parent.mkdir(exist_ok=True)
            RESULTS.write_text(json.dumps(stored, indent=1) + "\n")


def write_refused(scratch: Path) -> None:
    """One checkpoint that must not open without the loader."""
    model = make_tiny_model("llama")
    cut(model)
    model.save_pretrained(scratch / "refused" / "llama-per_layer")


if __name__ == "__main__":
    main()
