"""One training loop on one model, its steps timed in a process of their own.

    python -m bench.training_loops LOOP --model DIR --text FILE --out DIR

Prints one JSON line. B sequences, T tokens.
"""

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)

from bench.matmul import matmul_flops
from pruning.data.corpus import build_corpus
from pruning.data.mixture import MixtureSampler
from pruning.events import Event, PhaseChanged, RunFinished, StepFinished
from pruning.models.geometry import count_parameters
from pruning.pipeline import run
from pruning.recipe import Recipe
from pruning.recipe_parts.data import Data
from pruning.recipe_parts.recovery import Recovery
from pruning.training.loop import Progress, TrainingLoop
from pruning.training.optimizer import build_optimizer
from pruning.training.schedule import Schedule

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
    model, sampler = _open(args.model), _sampler(args)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)

    def step() -> None:
        ids_BT, _ = sampler.next_batch(args.batch)
        with torch.autocast("cpu", torch.bfloat16):
            model(ids_BT, labels=ids_BT).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return {"seconds": time_steps(step, args.steps), "num_parameters": count_parameters(model)}


def trainer(args: argparse.Namespace) -> dict[str, Any]:
    """transformers' Trainer with the same batch and precision."""
    model, sampler = _open(args.model), _sampler(args)
    batches = (sampler.next_batch(args.batch)[0] for _ in range(args.steps + 1))
    clock: Clock = {"wall": [], "cpu": []}

    class Timed(Trainer):  # type: ignore[misc]  # transformers leaves its Trainer untyped
        def training_step(self, *inputs: Any, **named: Any) -> Tensor:
            clock["wall"].append(time.perf_counter())
            clock["cpu"].append(time.process_time())
            loss: Tensor = super().training_step(*inputs, **named)
            return loss

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
        train_dataset=[{"input_ids": ids_T} for ids_BT in batches for ids_T in ids_BT],
        data_collator=_with_labels,
    ).train()
    # From the start of one step to the start of the next; the last has none.
    seconds = {name: np.diff(times)[1:].tolist() for name, times in clock.items()}
    return {"seconds": seconds, "num_parameters": count_parameters(model)}


def ours(args: argparse.Namespace, *, compiled: bool = False) -> dict[str, Any]:
    """The loop of a run, with its batch, optimizer and precision as recipes have them."""
    model, watch = _open(args.model), _Watch()
    recovery = Recovery.model_validate(
        {
            "sequence_length": args.length,
            "batch_sequences": args.batch,
            "compile": compiled,
            "learning_rate": {"peak": LEARNING_RATE},
        }
    )
    rate, total = recovery.learning_rate, args.steps + 1
    loop = TrainingLoop(
        model=model,
        optimizer=build_optimizer(model, recovery),
        sampler=_sampler(args),
        recovery=recovery,
        batch_sequences=args.batch,
        schedule=Schedule(learning_rate=rate, total_steps=total, last_cut_step=0),
        progress=Progress(),
        emit=watch,
    )
    started = time.perf_counter()
    loop.train(total, increment=1)
    elapsed = time.perf_counter() - started
    seconds = watch.steps()
    return {
        "seconds": seconds,
        "num_parameters": count_parameters(model),
        "data_share": loop.data_seconds / elapsed,
        "first_step_seconds": elapsed - sum(seconds["wall"]),
    }


def whole_run(args: argparse.Namespace) -> dict[str, Any]:
    """A run of one increment by the default recipe: what stands beside its training."""
    recipe = Recipe.model_validate(
        {
            "model": str(args.model),
            "target": "5%",
            "data": {"train": {"kind": "path", "path": str(args.text)}},
            "schedule": {"num_increments": 1, "num_tokens": 3 * args.batch * args.length},
            "recovery": {
                "sequence_length": args.length,
                "batch_sequences": args.batch,
                "learning_rate": {"peak": LEARNING_RATE},
                # After every step but the last, which the increment's own checkpoint follows.
                "checkpoint_seconds": 1e-9,
            },
            "evaluation": {"speed": False},
        }
    )
    watch = _Watch()
    run(recipe, args.out / "run", watch, device="cpu", threads=args.threads)
    between = np.array(watch.steps()["wall"])
    training = args.batch * args.length / np.array(watch.tokens_per_second[1:])
    phases = watch.phase_seconds
    return {
        "cut_seconds": sum(phases["calibrating"]) + sum(phases["pruning"]),
        "evaluation_seconds": float(np.median(phases["evaluating"])),
        "checkpoint_seconds": float(np.median(between - training)),
        "publication_seconds": sum(phases["exporting"]),
        "step_seconds": float(np.median(training)),
    }


@dataclass
class _Watch:
    """Keeps the times of a run's events."""

    phase_seconds: dict[str, list[float]] = field(default_factory=dict)
    tokens_per_second: list[float] = field(default_factory=list)
    _phase: tuple[str, datetime] | None = None
    _times: list[tuple[float, float]] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        if isinstance(event, PhaseChanged | RunFinished):
            if self._phase is not None:
                name, since = self._phase
                elapsed = (event.at - since).total_seconds()
                self.phase_seconds.setdefault(name, []).append(elapsed)
            self._phase = (getattr(event, "phase", ""), event.at)
        elif isinstance(event, StepFinished):
            self._times.append((time.perf_counter(), time.process_time()))
            self.tokens_per_second.append(event.tokens_per_second)

    def steps(self) -> Clock:
        """Of each step but the first."""
        walls, cpus = zip(*self._times, strict=True)
        return {"wall": np.diff(walls).tolist(), "cpu": np.diff(cpus).tolist()}


def _open(directory: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return model.train()


def _sampler(args: argparse.Namespace) -> MixtureSampler:
    """Random windows of the text."""
    data = Data.model_validate({"train": {"kind": "path", "path": str(args.text)}})
    needed = (args.steps + 1) * args.batch * args.length
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    corpus = build_corpus(data, tokenizer, args.out / "corpus", max_train_tokens=needed)
    return MixtureSampler(corpus.domains, sequence_length=args.length, seed=0)


def _with_labels(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    ids_BT = torch.stack([row["input_ids"] for row in rows])
    return {"input_ids": ids_BT, "labels": ids_BT}


LOOPS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "plain": plain,
    "trainer": trainer,
    "ours": ours,
    "ours_compiled": partial(ours, compiled=True),
    "whole_run": whole_run,
}


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
