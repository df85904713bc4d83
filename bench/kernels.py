"""What the training loop's own kernels are worth beside torch's: `python -m bench.kernels`.

Forward and backward of one micro-batch of SmolLM2-135M on the CPU: cross-entropy from hidden states
(torch's on whole logits, torch's chunked `linear_cross_entropy`, ours) and causal attention
(torch's kernel, ours). Random numbers of the model's shapes: nothing else changes the times.
N predictions, D hidden, V vocabulary.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from pruning.models.attention import causal_attention
from pruning.models.loss import OutputHead, cross_entropy_of

RESULTS = Path(__file__).parent / "results"
HIDDEN, VOCABULARY, HEADS, KV_HEADS, WIDTH = 576, 49_152, 9, 3, 64
TOKENS = 2048
LENGTHS = (512, 2048)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    seconds = {
        name: _best(step, args.repeats)
        for name, step in {**_cross_entropies(), **_attentions()}.items()
    }
    for name, value in seconds.items():
        print(f"{name:<44} {1000 * value:8.1f} ms")
    kept = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "torch": torch.__version__,
        "threads": args.threads,
        "load_average": os.getloadavg()[0],
        "tokens": TOKENS,
        "cpu_seconds": seconds,
    }
    args.results.mkdir(parents=True, exist_ok=True)
    (args.results / "kernels.json").write_text(json.dumps(kept, indent=2) + "\n")


def _best(step: Callable[[], object], repeats: int) -> float:
    """Processor seconds of the quickest of some repeats."""
    seconds = []
    for _ in range(repeats):
        started = time.process_time()
        step()
        seconds.append(time.process_time() - started)
    return min(seconds)


def _cross_entropies() -> dict[str, Callable[[], object]]:
    hidden_ND = torch.randn(TOKENS, HIDDEN)
    weight_VD = (torch.randn(VOCABULARY, HIDDEN) * 0.05).requires_grad_()
    labels_N = torch.randint(0, VOCABULARY, (TOKENS,))

    def step(loss: Callable[[Tensor], Tensor]) -> None:
        weight_VD.grad = None
        with torch.autocast("cpu", torch.bfloat16):
            total = loss(hidden_ND.clone().requires_grad_())
        total.backward()  # type: ignore[no-untyped-call]  # torch's own

    def whole(hidden_ND: Tensor) -> Tensor:
        return functional.cross_entropy(functional.linear(hidden_ND, weight_VD).float(), labels_N)

    def chunked(hidden_ND: Tensor) -> Tensor:
        options = nn.LinearCrossEntropyOptions()
        return functional.linear_cross_entropy(
            hidden_ND.bfloat16(), weight_VD.bfloat16(), labels_N, options=options
        )

    def ours(hidden_ND: Tensor) -> Tensor:
        return cross_entropy_of(hidden_ND, labels_N, OutputHead(weight=weight_VD), "bfloat16")

    losses = {"whole logits": whole, "torch's linear_cross_entropy": chunked, "ours": ours}
    return {f"cross-entropy, {name}": partial(step, loss) for name, loss in losses.items()}


def _attentions() -> dict[str, Callable[[], object]]:
    def torchs(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, enable_gqa=True
        )

    def ours(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        attended: Tensor = causal_attention(query, key, value, WIDTH**-0.5)
        return attended.transpose(1, 2)

    def step(attend: Callable[[Tensor, Tensor, Tensor], Tensor], length: int) -> None:
        heads = [
            torch.randn(TOKENS // length, length, number, WIDTH, dtype=torch.bfloat16)
            .transpose(1, 2)
            .requires_grad_()
            for number in (HEADS, KV_HEADS, KV_HEADS)
        ]
        attended = attend(*heads)
        torch.autograd.grad(attended, heads, torch.ones_like(attended))

    return {
        f"attention over {length}, {name}": partial(step, attend, length)
        for length in LENGTHS
        for name, attend in {"torch's": torchs, "ours": ours}.items()
    }


if __name__ == "__main__":
    main()
