"""Pruned checkpoints under other versions of transformers: `python -m bench.loading_versions DIR`.

Each DIR holds one version, installed beside the environment's torch, with the packages it pins:
    pip install --target DIR --no-deps 'transformers==5.14.*' 'huggingface_hub<2' 'tokenizers<0.23'
Checkpoints of every family, with unequal and with equal layers, are written by the environment's
own version; each version opens them in a process of its own, and must give the same logits.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from tests.pruning.export.tiny import cut
from tests.pruning.tiny import FAMILIES, make_tiny_model, random_ids

_OPEN = """
import json, pathlib, sys, torch, espalier.loading, transformers
torch.set_num_threads(1)
from transformers import AutoModelForCausalLM
transformers.logging.set_verbosity_error()
expected = torch.tensor(json.loads(pathlib.Path(sys.argv[1]).read_text())["ids"])
found = {}
for directory in sorted(pathlib.Path(sys.argv[2]).iterdir()):
    try:
        model = AutoModelForCausalLM.from_pretrained(directory).eval()
        with torch.no_grad():
            logits = model(input_ids=expected).logits
        reference = torch.frombuffer(
            bytearray((directory / "logits.bin").read_bytes()), dtype=torch.float32
        ).view_as(logits)
        settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
        prompt = expected[:1, :6]
        plain = model.generate(prompt, **settings, use_cache=False)
        same = all(
            torch.equal(plain, model.generate(prompt, **settings, cache_implementation=cache))
            for cache in ("dynamic", "static")
        )
        model.save_pretrained(str(pathlib.Path(sys.argv[3]) / directory.name))
        again = AutoModelForCausalLM.from_pretrained(pathlib.Path(sys.argv[3]) / directory.name)
        with torch.no_grad():
            same_again = torch.equal(again.eval()(input_ids=expected).logits, logits)
        found[directory.name] = [float((logits - reference).abs().max()), same, same_again]
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


def open_all(overlay: Path, checkpoints: Path, scratch: Path) -> dict[str, object]:
    """What one version made of the checkpoints."""
    request = scratch / "ids.json"
    request.write_text(json.dumps({"ids": random_ids().tolist()}))
    again = scratch / f"again-{overlay.name}"
    done = subprocess.run(
        [sys.executable, "-c", _OPEN, request, checkpoints, again],
        env={**os.environ, "PYTHONPATH": f"{overlay.resolve()}:{Path.cwd()}"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return {"version": overlay.name, "found": {"import": done.stderr[-400:]}}
    report: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return report


def main() -> None:
    """Print, per version, what did not open as it was."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("overlays", type=Path, nargs="+", metavar="DIR")
    parsed = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch_name:
        scratch = Path(scratch_name)
        write_checkpoints(scratch / "checkpoints")
        for overlay in parsed.overlays:
            report = open_all(overlay, scratch / "checkpoints", scratch)
            found = report["found"]
            assert isinstance(found, dict)
            bad = {k: v for k, v in found.items() if v != [0.0, True, True]}
            print(
                f"transformers {report['version']}: {len(found) - len(bad)} of {len(found)} equal"
            )
            for name, what in bad.items():
                print(f"  {name}: {what}")


if __name__ == "__main__":
    main()
