"""Estimates of models on disk."""

import json
from pathlib import Path
from typing import Any

from bench.api_load import Asked, closed_loop
from bench.api_site import Bench, bar, figures
from tests.api.served import serving
from tests.factories import SMALL_REQUEST

REQUESTS = 200
# SmolLM2-135M's.
_CONFIG = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}


def bench_estimates(bench: Bench, *, gguf: Path | None) -> dict[str, Any]:
    """How long an estimate takes, from config.json and from the header of a GGUF file."""
    directory = bench.directory / "model"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(_CONFIG))
    found: dict[str, Any] = {}
    models = {"config": {"source": "path", "path": str(directory)}}
    if gguf is not None:
        models["gguf"] = {"source": "path", "path": str(gguf.parent), "gguf_file": gguf.name}
    roots = [str(directory), *([str(gguf.parent)] if gguf is not None else [])]
    with serving(bench.settings, {"ESPALIER_ALLOWED_PATHS": json.dumps(roots)}) as api:
        for name, model in models.items():
            body = json.dumps({**SMALL_REQUEST, "model": model}).encode()
            headers = {**bench.holder.headers, "Content-Type": "application/json"}
            asked = Asked("POST", "/v1/estimates", body, headers)
            closed_loop(api.url, api.pid, asked, requests=4, threads=1)
            spent = closed_loop(api.url, api.pid, asked, requests=REQUESTS, threads=1)
            found[name] = {**figures(spent), "p95_ms": round(1000 * spent.percentile(0.95), 2)}
            bar(f"estimate from {name}: p95, ms", found[name]["p95_ms"], most=50)
    return found
