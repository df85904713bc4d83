"""Each export in a fresh environment: `python -m bench.transcript --wheel W --checkpoint DIR`.

Every environment is made for this, with what `docs/serving.md` says and nothing else; what was
typed and what came back is stored as it was.
"""

import argparse
import shlex
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "serving-transcript.txt"
PROMPT = "The gardener prunes the tree"

_GENERATE = """\
{first}from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained("{where}"{options})
tokenizer = AutoTokenizer.from_pretrained("{where}")
ids = tokenizer("{prompt}", return_tensors="pt")
written = model.generate(**ids, max_new_tokens=8, do_sample=False)[0].tolist()
print(written, tokenizer.decode(written))
"""

_LLAMA_CPP = """\
import xllamacpp
params = xllamacpp.CommonParams()
params.model.path = "{where}/model.gguf"
params.n_gpu_layers = 0
params.verbosity = 0
server = xllamacpp.Server(params)
request = {{"prompt": "{prompt}", "n_predict": 8, "temperature": 0.0, "return_tokens": True}}
print("{prompt}" + server.handle_completions(request)["choices"][0]["text"])
"""

_ONNXRUNTIME = """\
import numpy as np, onnxruntime
from tokenizers import Tokenizer
session = onnxruntime.InferenceSession("{where}/model.onnx")
tokenizer = Tokenizer.from_file("{where}/tokenizer.json")
ids = tokenizer.encode("{prompt}").ids
caches = [value for value in session.get_inputs() if "past_key_values" in value.name]
feeds = {{
    value.name: np.zeros((1, int(value.shape[1]), 0, int(value.shape[3])), np.float32)
    for value in caches
}}
names = ["logits", *(value.name.replace("input.", "output.", 1) for value in caches)]
step, length = ids, len(ids)
for _ in range(8):
    asked = {{"input_ids": np.array([step]), "attention_mask": np.ones((1, length), np.int64)}}
    logits, *new = session.run(names, {{**asked, **feeds}})
    feeds = dict(zip((value.name for value in caches), new))
    step, length = [int(logits[0, -1].argmax())], length + 1
    ids += step
print(ids, tokenizer.decode(ids))
"""

_WITHOUT_LOADER = """\
from transformers import AutoModelForCausalLM
try:
    AutoModelForCausalLM.from_pretrained("{where}")
except Exception as error:
    print(type(error).__name__, str(error)[:400])
"""


class Environment:
    """A virtual environment, made and used in the transcript."""

    def __init__(self, directory: Path, transcript: list[str]) -> None:
        self._python = directory / "bin" / "python"
        self._transcript = transcript
        subprocess.run([sys.executable, "-m", "venv", directory], check=True)
        transcript.append(f"$ python -m venv {directory.name}")

    def install(self, *packages: str) -> None:
        """Say what is installed, and which versions came."""
        pip = [str(self._python), "-m", "pip", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "-q", *packages], check=True, capture_output=True)
        shown = " ".join(Path(package).name for package in packages)
        self._transcript.append(f"$ pip install {shlex.join(shown.split())}")
        done = subprocess.run([*pip, "freeze"], check=True, capture_output=True, text=True)
        names = ("torch", "transformers", "xllamacpp", "onnxruntime", "espalier")
        found = [line.split(" @")[0] for line in done.stdout.splitlines()]
        self._transcript.append("  " + ", ".join(f for f in found if f.startswith(names)))

    def run(self, code: str, cwd: Path) -> None:
        """Run a few lines of Python and keep what they print."""
        self._transcript += [f">>> {line}" for line in code.splitlines()]
        # Isolated: neither this directory nor a PYTHONPATH of the caller's may lend it Espalier.
        done = subprocess.run(
            [self._python, "-I", "-c", code], capture_output=True, text=True, cwd=cwd, check=False
        )
        self._transcript += done.stdout.splitlines()
        if done.returncode:
            self._transcript += ["FAILED", *done.stderr.splitlines()[-5:]]
        self._transcript.append("")


def transcribe(wheel: Path, checkpoint: Path) -> list[str]:
    """Every export of a checkpoint, each in its engine."""
    transcript: list[str] = []
    exports = checkpoint / "exports"
    with tempfile.TemporaryDirectory() as scratch:
        transformers = Environment(Path(scratch, "with-transformers"), transcript)
        transformers.install("torch", "transformers")
        transformers.run(_WITHOUT_LOADER.format(where="."), checkpoint)
        for name, options in (("padded", ""), ("remote_code", ", trust_remote_code=True")):
            code = _GENERATE.format(
                first="", where=f"exports/{name}", options=options, prompt=PROMPT
            )
            transformers.run(code, checkpoint)
        transformers.install(str(wheel))
        first = "import espalier.loading\n"
        transformers.run(
            _GENERATE.format(first=first, where=".", options="", prompt=PROMPT), checkpoint
        )
        llama_cpp = Environment(Path(scratch, "with-llama-cpp"), transcript)
        llama_cpp.install("xllamacpp")
        for directory in sorted(exports.glob("gguf-*")):
            where = f"exports/{directory.name}"
            llama_cpp.run(_LLAMA_CPP.format(where=where, prompt=PROMPT), checkpoint)
        if (exports / "onnx").is_dir():
            onnxruntime = Environment(Path(scratch, "with-onnxruntime"), transcript)
            onnxruntime.install("onnxruntime", "tokenizers")
            onnxruntime.run(_ONNXRUNTIME.format(where="exports/onnx", prompt=PROMPT), checkpoint)
    return transcript


def main() -> None:
    """Store the transcript."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wheel", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="DIR")
    parsed = parser.parse_args()
    lines = transcribe(parsed.wheel.resolve(), parsed.checkpoint.resolve())
    at = datetime.now(UTC).isoformat(timespec="seconds")
    RESULTS.parent.mkdir(exist_ok=True)
    head = f"{at}, in the directory of the checkpoint {parsed.checkpoint.name}"
    RESULTS.write_text("\n".join([head, "", *lines]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
