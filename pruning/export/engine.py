"""One export in its own engine, in a process of its own: `python -m pruning.export.engine`.

The process knows nothing of Espalier's loader, as its users' will not, and a crash of native code
is an answer that never came. P prompts, K tokens of the vocabulary each.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pruning.errors import ExportRefused

Engine = Literal["transformers", "transformers-remote-code", "llama.cpp", "onnxruntime", "vllm"]
_TIMEOUT_SECONDS = 1800
_LARGEST_ANSWER = 1024
"""Tokens llama.cpp returns per prompt: as many as its server writes in reasonable time."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the engine holds likely after each prompt, ids and log-probabilities [P, K].

    `tokens` are its own tokens of the texts, where it has a tokenizer of its own.
    """

    ids: NDArray[np.int64]
    log_probs: NDArray[np.float32]
    tokens: list[list[int]] | None
    version: str


def ask(
    engine: Engine,
    artifact: Path,
    *,
    prompts: Sequence[Sequence[int]],
    texts: Sequence[str],
    python: str = sys.executable,
) -> Answer:
    """Open `artifact` in a fresh process of `engine` and let it continue each prompt by one token.

    `python` is the interpreter of the environment in which the engine is installed.

    Raises:
        ExportRefused: the engine is missing, or could not open or run the artifact.
    """
    with tempfile.TemporaryDirectory() as scratch:
        question, answer = Path(scratch, "question.json"), Path(scratch, "answer.npz")
        question.write_text(json.dumps({"prompts": list(map(list, prompts)), "texts": list(texts)}))
        try:
            done = subprocess.run(
                [python, "-m", __spec__.name, engine, artifact, question, answer],
                capture_output=True,
                text=True,
                timeout=_TIMEOUT_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise ExportRefused(f"{engine}: no answer in {_TIMEOUT_SECONDS} seconds") from error
        if done.returncode != 0 or not answer.is_file():
            last_lines = "\n".join(done.stderr.strip().splitlines()[-5:])
            raise ExportRefused(f"{engine} cannot run {artifact.name}: {last_lines}")
        with np.load(answer) as arrays:
            return Answer(
                ids=arrays["ids"],
                log_probs=arrays["log_probs"],
                tokens=json.loads(str(arrays["tokens"])),
                version=str(arrays["version"]),
            )


def main() -> None:
    """Answer one question on the command line."""
    parser = argparse.ArgumentParser(prog=f"python -m {__spec__.name}")
    parser.add_argument("engine")
    for name in ("artifact", "question", "answer"):
        parser.add_argument(name, type=Path)
    parsed = parser.parse_args()
    question = json.loads(parsed.question.read_text())
    if parsed.engine == "llama.cpp":
        answer = _llama_cpp(parsed.artifact, **question)
    elif parsed.engine == "onnxruntime":
        answer = _onnxruntime(parsed.artifact, question["prompts"])
    elif parsed.engine == "vllm":
        answer = _vllm(parsed.artifact, question["prompts"])
    else:
        remote_code = parsed.engine == "transformers-remote-code"
        answer = _transformers(parsed.artifact, question["prompts"], remote_code=remote_code)
    np.savez(
        parsed.answer,
        ids=answer.ids,
        log_probs=answer.log_probs,
        tokens=json.dumps(answer.tokens),
        version=answer.version,
    )


def _transformers(artifact: Path, prompts: list[list[int]], *, remote_code: bool) -> Answer:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        artifact, dtype=torch.float32, trust_remote_code=remote_code
    ).eval()
    rows = []
    with torch.no_grad():
        for prompt in prompts:
            logits_V = model(input_ids=torch.tensor([prompt])).logits[0, -1]
            rows.append(torch.log_softmax(logits_V.float(), dim=-1).numpy())
    return _of_whole_vocabulary(rows, f"transformers {version('transformers')}")


def _onnxruntime(artifact: Path, prompts: list[list[int]]) -> Answer:
    import onnxruntime  # type: ignore[import-untyped]  # ships no types

    session = onnxruntime.InferenceSession(artifact, providers=["CPUExecutionProvider"])
    # A KV cache per layer, as many heads as the layer has, and nothing in it yet.
    empty = {
        value.name: np.zeros((1, int(value.shape[1]), 0, int(value.shape[3])), dtype=np.float32)
        for value in session.get_inputs()
        if "past_key_values" in value.name
    }
    rows = []
    for prompt in prompts:
        ids_1T = np.array([prompt], dtype=np.int64)
        feeds = {"input_ids": ids_1T, "attention_mask": np.ones_like(ids_1T), **empty}
        logits_V = session.run(["logits"], feeds)[0][0, -1]
        shifted_V = logits_V.astype(np.float64) - logits_V.max()
        rows.append(shifted_V - np.log(np.exp(shifted_V).sum()))
    return _of_whole_vocabulary(rows, f"onnxruntime {version('onnxruntime')}")


def _vllm(artifact: Path, prompts: list[list[int]]) -> Answer:
    # Otherwise it keeps a core for its scheduler, and where there is one only, the model has none.
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    import vllm  # type: ignore[import-not-found]  # in an environment of its own

    brings_code = any(artifact.glob("configuration_*.py"))
    model = vllm.LLM(
        str(artifact),
        model_impl="auto" if brings_code else "transformers",
        trust_remote_code=brings_code,
        dtype="float32",
        enforce_eager=True,
        max_model_len=max(map(len, prompts)) + 8,
        max_num_seqs=1,
        max_logprobs=_LARGEST_ANSWER,
    )
    num_logprobs = min(_LARGEST_ANSWER, model.get_tokenizer().vocab_size)
    settings = vllm.SamplingParams(max_tokens=1, temperature=0.0, logprobs=num_logprobs)
    outputs = model.generate([{"prompt_token_ids": prompt} for prompt in prompts], settings)
    # The sampled token comes on top of the likeliest.
    rows = [sorted(output.outputs[0].logprobs[0].items()) for output in outputs]
    fewest = min(map(len, rows))
    return Answer(
        ids=np.array([[token for token, _ in row[:fewest]] for row in rows]),
        log_probs=np.array(
            [[found.logprob for _, found in row[:fewest]] for row in rows], dtype=np.float32
        ),
        tokens=None,
        version=f"vllm {vllm.__version__}",
    )


def _of_whole_vocabulary(rows: list[NDArray[Any]], engine_version: str) -> Answer:
    log_probs_PK = np.stack(rows).astype(np.float32)
    ids_PK = np.broadcast_to(np.arange(log_probs_PK.shape[1]), log_probs_PK.shape)
    return Answer(ids=ids_PK, log_probs=log_probs_PK, tokens=None, version=engine_version)


def _llama_cpp(artifact: Path, prompts: list[list[int]], texts: list[str]) -> Answer:
    server = open_llama_cpp(artifact, context=max(map(len, prompts)) + 8)
    spoken = _tokenize(server.listening_address, "a")[-1]
    most_likely = [_next_tokens(server, prompt, spoken) for prompt in prompts]
    return Answer(
        ids=np.array([[token["id"] for token in row] for row in most_likely]),
        log_probs=np.array(
            [[token["logprob"] for token in row] for row in most_likely], dtype=np.float32
        ),
        tokens=[_tokenize(server.listening_address, text) for text in texts],
        version=f"llama.cpp (xllamacpp {version('xllamacpp')})",
    )


def open_llama_cpp(
    artifact: Path, *, context: int, threads: int | None = None, exact_cache: bool = True
) -> Any:
    """llama.cpp's server on a model, on the CPU; `exact_cache` keeps keys and values in fp32."""
    import xllamacpp  # type: ignore[import-untyped]  # ships no types

    params = xllamacpp.CommonParams()
    params.model.path = str(artifact)
    params.n_ctx = context
    params.n_gpu_layers = 0
    params.n_parallel = 1
    params.warmup = False
    params.verbosity = 0
    if threads is not None:
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    if exact_cache:
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return xllamacpp.Server(params)


def _next_tokens(server: Any, prompt: list[int], spoken: int) -> list[dict[str, Any]]:
    answer = server.handle_completions(
        {
            "prompt": prompt,
            "n_predict": 1,
            "n_probs": _LARGEST_ANSWER,
            "temperature": 0.0,
            "cache_prompt": False,
            # The server reports probabilities with a token that has text, which the likeliest (an
            # end, part of a character) may not. They are those before any bias.
            "logit_bias": [[spoken, 1e6]],
        }
    )
    if "choices" not in answer:
        raise RuntimeError(f"llama.cpp: {answer}")
    tokens: list[dict[str, Any]] = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    return tokens


def _tokenize(address: str, text: str) -> list[int]:
    request = urllib.request.Request(
        f"{address}/tokenize",
        data=json.dumps({"content": text, "add_special": False, "parse_special": True}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as response:
        tokens: list[int] = json.load(response)["tokens"]
    return tokens


if __name__ == "__main__":
    main()
