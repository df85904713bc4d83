"""One training loop on one model, its steps timed in a process of their own.

    python -m bench.training_loops LOOP --model DIR --text FILE --out DIR

Prints one JSON line. B sequences, T tokens.
"""

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, Trainer, TrainingArguments

from bench.matmul import matmul_flops
from pruning.data.corpus import DomainTokens
from pruning.data.mixture import MixtureSampler
from pruning.events import Event, PhaseChanged, StepFinished
from pruning.models.geometry import count_parameters
from pruning.recipe import Recipe

LEARNING_RATE = 1e-4
Clock = dict[str, list[float]]


def time_steps(step: Callable[[], object], num_steps: int) -> Clock:
    """Wall and processor seconds of each step, after one to warm up."""
    clock: Clock = {"wall": [], "cpu": []}
    for _ in range(num_steps + 1):
        wall, cpu = time.perf_counter(), time.process_time()
        step()
        clock["wall"].append(time.perf_counter() - wall)
        clock["cpu"].append(time.process_time() - cpu)
    return {name: seconds[1:] for name, seconds in clock.items()}


def plain(args: argparse.Namespace) -> dict[str, Any]:
    """What most people write: autocast, whole logits, AdamW."""
    model = _open(args.model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
    batches = _batches(args)

    def step() -> None:
        ids_BT = next(batches)
        with torch.autocast("cpu", torch.bfloat16):
            model(ids_BT, labels=ids_BT).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return {"seconds": time_steps(step, args.steps), "num_parameters": count_parameters(model)}


def trainer(args: argparse.Namespace) -> dict[str, Any]:
    """transformers' Trainer with the same batch and precision."""
    model = _open(args.model)
    batches = _batches(args)
    rows = [{"input_ids": ids_T} for _ in range(args.steps + 1) for ids_T in next(batches)]
    clock: Clock = {"wall": [], "cpu": []}

    class Timed(Trainer):  # type: ignore[misc]  # transformers leaves its Trainer untyped
        def training_step(self, *inputs: Any, **named: Any) -> Tensor:
            clock["wall"].append(time.perf_counter())
            clock["cpu"].append(time.process_time())
            return super().training_step(*inputs, **named)

    Timed(
        model=model,
        args=TrainingArguments(
            output_dir=str(args.out),
            per_device_train_batch_size=args.batch,
            max_steps=args.steps + 1,
            bf16=True,
            use_cpu=True,
            optim="adamw_torch_fused",
            learning_rate=LEARNING_RATE,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=rows,
        data_collator=_with_labels,
    ).train()
    # From the start of one step to the start of the next; the last has none.
    seconds = {name: np.diff(times)[1:].tolist() for name, times in clock.items()}
    return {"seconds": seconds, "num_parameters": count_parameters(model)}


def ours(args: argparse.Namespace) -> dict[str, Any]:
    """A whole run of one increment, its phases timed by its own events."""
    from pruning.pipeline import run

    tokens = (args.steps + 1) * args.batch * args.length
    recipe = Recipe.model_validate(
        {
            "model": str(args.model),
            "target": "5%",
            "data": {"train": {"kind": "path", "path": str(args.text)}},
            "method": "adapt_pruner",
            "schedule": {"num_increments": 1, "num_tokens": tokens},
            "recovery": {
                "sequence_length": args.length,
                "batch_sequences": args.batch,
                "compile": args.loop == "ours_compiled",
                "learning_rate": {"peak": LEARNING_RATE},
            },
            "evaluation": {"speed": False},
        }
    )
    watch = _Watch()
    waiting = _time_waiting()
    run(recipe, args.out, watch, device="cpu", threads=args.threads)
    training = watch.phase_seconds["training"]
    return {
        "seconds": watch.steps(),
        "num_parameters": watch.num_parameters,
        "phase_seconds": watch.phase_seconds,
        "data_share": sum(waiting) / training,
    }


class _Watch:
    def __init__(self) -> None:
        self.phase_seconds: dict[str, float] = {}
        self.num_parameters = 0
        self._phase: tuple[str, datetime] | None = None
        self._times: list[tuple[float, float]] = []

    def __call__(self, event: Event) -> None:
        if self._phase is not None:
            name, since = self._phase
            elapsed = (event.at - since).total_seconds()
            self.phase_seconds[name] = self.phase_seconds.get(name, 0.0) + elapsed
            self._phase = (name, event.at)
        if isinstance(event, PhaseChanged):
            self._phase = (event.phase, event.at)
        elif isinstance(event, StepFinished):
            self._times.append((time.perf_counter(), time.process_time()))
        elif hasattr(event, "num_parameters"):
            self.num_parameters = event.num_parameters

    def steps(self) -> Clock:
        walls, cpus = zip(*self._times, strict=True)
        return {"wall": np.diff(walls).tolist(), "cpu": np.diff(cpus).tolist()}


def _time_waiting() -> list[float]:
    """Seconds of each draw of the sampler from now on."""
    waiting: list[float] = []
    draw = MixtureSampler.next_batch

    def timed(self: MixtureSampler, batch_sequences: int) -> Any:
        started = time.perf_counter()
        drawn = draw(self, batch_sequences)
        waiting.append(time.perf_counter() - started)
        return drawn

    MixtureSampler.next_batch = timed  # type: ignore[method-assign]  # the bench's only look inside
    return waiting


def _open(directory: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return model.train()


def _batches(args: argparse.Namespace) -> Iterator[Tensor]:
    """Random windows ids_BT of the text."""
    from pruning.data.corpus import build_corpus
    from pruning.models.load import load_base_model
    from pruning.recipe_parts.data import Data
    from pruning.recipe_parts.model import PathModel

    tokenizer = load_base_model(PathModel(path=str(args.model)), dtype=torch.float32).tokenizer
    data = Data.model_validate({"train": {"kind": "path", "path": str(args.text)}})
    needed = (args.steps + 1) * args.batch * args.length
    corpus = build_corpus(data, tokenizer, args.out / "corpus", max_train_tokens=needed)
    domains: tuple[DomainTokens, ...] = corpus.domains
    sampler = MixtureSampler(domains, sequence_length=args.length, seed=0)
    while True:
        yield sampler.next_batch(args.batch)[0]


def _with_labels(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    ids_BT = torch.stack([row["input_ids"] for row in rows])
    return {"input_ids": ids_BT, "labels": ids_BT}


LOOPS = {"plain": plain, "trainer": trainer, "ours": ours, "ours_compiled": ours}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("loop", choices=LOOPS)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found = LOOPS[args.loop](args)
    found["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found["matmul_flops"] = matmul_flops()
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
