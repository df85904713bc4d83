"""How fast an export is beside the dense model in its engine: `python -m pruning.export.speed`.

Each opening is a process of its own, the two models taking turns, so that what else the machine
does meets both.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, TypeAdapter

from pruning.errors import ExportRefused
from pruning.export.engine import Engine, open_llama_cpp

SPEED_NAME = "speed.json"

_PROMPT_TOKENS = 64
_PROMPT = list(range(1, _PROMPT_TOKENS + 1))
"""Any ids do: speed does not depend on which tokens they are."""
_NEW_TOKENS = 64
_REPEATS = 3
_TIMEOUT_SECONDS = 1800


class EngineSpeed(BaseModel):
    """One model in one engine at batch size 1.

    `first_token_seconds` is the time to read the prompt; `memory_bytes` how much larger the process
    was at its largest than before it opened the model (None where the system does not say).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    decode_tokens_per_second: float
    first_token_seconds: float
    memory_bytes: int | None


class SpeedRecord(BaseModel):
    """An export and the dense model in the same format: medians over all repeats of all rounds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine: Engine
    export: EngineSpeed
    dense: EngineSpeed
    num_samples: int
    protocol: dict[str, str | int | float | bool | None]


_SAMPLES = TypeAdapter(list[EngineSpeed])


def measure_beside(
    engine: Engine, export: Path, dense: Path, *, rounds: int = 3, threads: int | None = None
) -> SpeedRecord:
    """Decode with both models, turn about.

    Raises:
        ExportRefused: the engine could not run one of them, or is not one that is timed.
    """
    if engine not in _ENGINES:
        raise ExportRefused(f"{engine} is not timed")
    threads = threads or len(os.sched_getaffinity(0))
    found: dict[Path, list[EngineSpeed]] = {export: [], dense: []}
    for _ in range(rounds):
        for artifact, samples in found.items():
            samples += _sample(engine, artifact, threads)
    return SpeedRecord(
        engine=engine,
        export=_median(found[export]),
        dense=_median(found[dense]),
        num_samples=len(found[export]),
        protocol={
            "device": "cpu",
            "threads": threads,
            "batch_size": 1,
            "prompt_tokens": _PROMPT_TOKENS,
            "new_tokens": _NEW_TOKENS,
            "rounds": rounds,
            "repeats": _REPEATS,
            "statistic": "median",
        },
    )


def _sample(engine: Engine, artifact: Path, threads: int) -> list[EngineSpeed]:
    # Ours (`espalier up`, the Makefile) lets threads sleep between operations, for the sake of what
    # runs beside them. llama.cpp waits so several hundred times a token: it lost two thirds of its
    # speed on two threads, and what pruning had gained with it.
    own_waiting = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    done = subprocess.run(
        [sys.executable, "-m", __spec__.name, engine, artifact, str(threads)],
        env=own_waiting,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        last_lines = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise ExportRefused(f"{engine} cannot be timed with {artifact.name}: {last_lines}")
    return _SAMPLES.validate_json(done.stdout.splitlines()[-1])


def _median(samples: Sequence[EngineSpeed]) -> EngineSpeed:
    memory = [sample.memory_bytes for sample in samples if sample.memory_bytes is not None]
    return EngineSpeed(
        decode_tokens_per_second=statistics.median(s.decode_tokens_per_second for s in samples),
        first_token_seconds=statistics.median(s.first_token_seconds for s in samples),
        memory_bytes=round(statistics.median(memory)) if memory else None,
    )


# --- in the engine's process ----------------------------------------------------------------------

Decode = Callable[[], tuple[float, float]]
"""Reads the prompt and writes the tokens: seconds to the first token, then tokens per second."""


def main() -> None:
    """Print the samples of one opening as JSON."""
    parser = argparse.ArgumentParser(prog=f"python -m {__spec__.name}")
    parser.add_argument("engine")
    parser.add_argument("artifact", type=Path)
    parser.add_argument("threads", type=int)
    parsed = parser.parse_args()
    open_model = _ENGINES[parsed.engine]()
    before = _resident_bytes("VmRSS")
    decode = open_model(parsed.artifact, parsed.threads)
    decode()  # Warms up.
    times = [decode() for _ in range(_REPEATS)]
    peak = _resident_bytes("VmHWM")
    memory = None if before is None or peak is None else max(0, peak - before)
    samples = [
        EngineSpeed(decode_tokens_per_second=rate, first_token_seconds=first, memory_bytes=memory)
        for first, rate in times
    ]
    sys.stdout.write(_SAMPLES.dump_json(samples).decode() + "\n")


def _resident_bytes(field: str) -> int | None:
    """VmRSS is what lies in memory now, VmHWM the most that has; Linux alone says both."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    values = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(values[field].removesuffix("kB")) * 1024


def _llama_cpp() -> Callable[[Path, int], Decode]:
    import xllamacpp  # type: ignore[import-untyped]  # noqa: F401  # its size is not the model's

    def open_model(artifact: Path, threads: int) -> Decode:
        context = _PROMPT_TOKENS + _NEW_TOKENS + 8
        server = open_llama_cpp(artifact, context=context, threads=threads, exact_cache=False)
        request = {
            "prompt": _PROMPT,
            "n_predict": _NEW_TOKENS,
            "ignore_eos": True,
            "temperature": 0.0,
            "cache_prompt": False,
        }

        def decode() -> tuple[float, float]:
            timings = server.handle_completions(request)["timings"]
            return timings["prompt_ms"] / 1000, timings["predicted_per_second"]

        return decode

    return open_model


def _onnxruntime() -> Callable[[Path, int], Decode]:
    import onnxruntime  # type: ignore[import-untyped]  # ships no types

    def open_model(artifact: Path, threads: int) -> Decode:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(
            artifact, options, providers=["CPUExecutionProvider"]
        )
        caches = [value for value in session.get_inputs() if "past_key_values" in value.name]
        names = [value.name.replace("input.", "output.", 1) for value in caches]

        def step(state: Any, length: int) -> Any:
            ids_1T, cache = state
            feeds = {"input_ids": ids_1T, "attention_mask": np.ones((1, length), np.int64), **cache}
            logits, *new = session.run(["logits", *names], feeds)
            following = logits[:, -1:].argmax(-1).astype(np.int64)
            return following, dict(zip((value.name for value in caches), new, strict=True))

        def decode() -> tuple[float, float]:
            cache = {
                value.name: np.zeros((1, int(value.shape[1]), 0, int(value.shape[3])), np.float32)
                for value in caches
            }
            return _timed(step, (np.array([_PROMPT], np.int64), cache))

        return decode

    return open_model


def _transformers() -> Callable[[Path, int], Decode]:
    import torch
    from transformers import AutoModelForCausalLM

    def open_model(artifact: Path, threads: int) -> Decode:
        torch.set_num_threads(threads)
        trusted = any(artifact.glob("modeling_*.py"))  # Our own remote-code variant.
        model = AutoModelForCausalLM.from_pretrained(
            artifact, dtype="auto", trust_remote_code=trusted
        ).eval()

        @torch.no_grad()
        def step(state: Any, _length: int) -> Any:
            ids_1T, cache = state
            output = model(ids_1T, past_key_values=cache, use_cache=True, logits_to_keep=1)
            return output.logits.argmax(-1), output.past_key_values

        return lambda: _timed(step, (torch.tensor([_PROMPT]), None))

    return open_model


def _timed(step: Callable[[Any, int], Any], state: Any) -> tuple[float, float]:
    started = time.perf_counter()
    state = step(state, _PROMPT_TOKENS)
    first = time.perf_counter()
    for written in range(1, _NEW_TOKENS + 1):
        state = step(state, _PROMPT_TOKENS + written)
    return first - started, _NEW_TOKENS / (time.perf_counter() - first)


_ENGINES: dict[str, Callable[[], Callable[[Path, int], Decode]]] = {
    "llama.cpp": _llama_cpp,
    "onnxruntime": _onnxruntime,
    "transformers": _transformers,
    "transformers-remote-code": _transformers,
}


def write_speed(record: SpeedRecord, directory: Path) -> None:
    """Store the figures beside the artifact."""
    (directory / SPEED_NAME).write_text(
        json.dumps(record.model_dump(), indent=2) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
