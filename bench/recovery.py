"""What recovery training is worth: equal tokens, several ways to spend them, one table.

    python -m bench.recovery --model DIR --train DIR --evaluation FILE
        [--sparsity 0.2] [--tokens 200000] [--variants fresh-3 default-3 distilled-6-dynamic …]
        [--device cuda]

A variant is `WAY-INCREMENTS[-dynamic]`. Ways, all but the last two cut by the default method:

- `fresh`: cross-entropy, Adam's moments forgotten at every cut
- `sliced`: cross-entropy, moments cut like the weights
- `distilled`: the same, and learning from the base model
- `distilled_fast`: the same with a higher learning rate
- `default`: what a recipe says that says nothing of recovery
- `newton`: the same, after cuts that a Newton step follows
- `official`: Adapt-Pruner's allocation, cross-entropy, moments forgotten, its learning rate
- `official_fast`: the same with a learning rate that suits few tokens better

Each runs in a process of its own, started as the worker starts its child. A later call with other
variants completes the table; with `--work` it goes on with a run that was interrupted.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import espalier.loading  # noqa: F401  Lets transformers open models whose layers differ.
from bench.plot import plot_recovery
from bench.recovery_table import Row, line_of, merged, update, with_bars
from pruning.evaluation.perplexity import evaluate_perplexity
from pruning.evaluation.suites import run_suites
from pruning.events import (
    EvaluationFinished,
    Event,
    IncrementFinished,
    PhaseChanged,
    PruneFinished,
    RunFinished,
    StepFinished,
    parse_event,
)
from pruning.recipe import Recipe
from pruning.recipe_parts.evaluation import Evaluation
from worker.child import child_environment

RESULTS = Path(__file__).parent / "results"
CONTEXT_LENGTH = 2048
HELD_OUT_TOKENS = 8192
CHECKPOINT_SECONDS = 120.0
VARIANTS = [
    *(
        f"{way}-{increments}{weights}"
        for way in ("fresh", "sliced", "distilled")
        for increments in (1, 3, 6)
        for weights in ("", "-dynamic")
    ),
    *("default-3", "official-3", "official_fast-3"),
]

_DISTILLED = {"distillation": {"teacher": "base", "weight": 0.5}}
_OFFICIAL = {"fresh_moments": True, "distillation": None, "betas": [0.9, 0.999]}
WAYS: dict[str, dict[str, Any]] = {
    "fresh": {"recovery": {"fresh_moments": True, "distillation": None}},
    "sliced": {"recovery": {"distillation": None}},
    "distilled": {"recovery": _DISTILLED},
    "distilled_fast": {"recovery": {**_DISTILLED, "learning_rate": {"peak": 3e-4}}},
    "default": {},
    "newton": {"compensation": "newton"},
    "official": {
        "method": "adapt_pruner",
        "recovery": {**_OFFICIAL, "learning_rate": {"peak": 2e-5}},
    },
    "official_fast": {
        "method": "adapt_pruner",
        "recovery": {**_OFFICIAL, "learning_rate": {"peak": 1e-4}},
    },
}
"""What each says in a recipe."""


def main() -> None:
    args = _arguments()
    torch.set_num_threads(args.threads)
    path = args.results / f"{args.name}.json"
    found = update(path, lambda found: found | _conditions(args))
    for variant in args.variants:
        found = _add(path, _measure(variant, args))
    if "dense" not in found:
        dense, suites = _evaluate(args.model, args)
        found = update(path, lambda found: found | {"dense": dense, "dense_suites": suites})
    print(f"dense: {found['dense']:.2f}", flush=True)
    for bar in found.get("bars", []):
        verdict = "met" if bar["met"] else "MISSED"
        print(f"{bar['what']:<64} {bar['figure']:7.3f}  bar ≤ {bar['bar']:<6g} {verdict}")


def _add(path: Path, row: Row) -> dict[str, Any]:
    found = update(path, lambda found: with_bars(found, merged(found, row)))
    plot_recovery(found, path.with_suffix(".png"))
    print(line_of(row), flush=True)
    return found


def _conditions(args: argparse.Namespace) -> dict[str, Any]:
    """What all rows of a table have in common."""
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": args.model.name,
        "evaluation": f"{args.evaluation.name}, first {args.evaluation_tokens} tokens",
        "context_length": CONTEXT_LENGTH,
        "calibration_samples": args.calibration_samples,
        "device": _device_name(args.device),
    }


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else device


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--train", type=Path, required=True, help="one file per domain")
    parser.add_argument("--evaluation", type=Path, required=True, help="WikiText-2 test")
    parser.add_argument("--evaluation-tokens", type=int, default=59_392)
    parser.add_argument("--suites", type=Path, help="JSON list of suites, by acc_norm")
    parser.add_argument("--sparsity", type=float, default=0.2)
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--calibration-samples", type=int, default=64, help="in each increment")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--variants", nargs="+", default=VARIANTS, type=_variant)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, help="where interrupted runs go on in the next call")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--name", default="recovery", help="Of the files under --results.")
    return parser.parse_args()


def _variant(text: str) -> str:
    way, _, rest = text.partition("-")
    number, _, weights = rest.partition("-")
    if way not in WAYS or not number.isdigit() or weights not in ("", "dynamic"):
        raise argparse.ArgumentTypeError(f"not WAY-INCREMENTS[-dynamic]: {text}; ways: {[*WAYS]}")
    return text


def recipe_of(variant: str, args: argparse.Namespace) -> Recipe:
    """The run that a variant stands for."""
    way, number, *dynamic = variant.split("-")
    return Recipe.model_validate(
        {
            **WAYS[way],
            "model": str(args.model.resolve()),
            "target": {"sparsity": args.sparsity},
            "data": {
                "train": {"kind": "path", "path": str(args.train.resolve())},
                "max_held_out_tokens": HELD_OUT_TOKENS,
                "mixture": {"kind": "dynamic" if dynamic else "static", "update_steps": 10},
            },
            "importance": {
                "calibration": {
                    "num_samples": args.calibration_samples,
                    "sequence_length": 512,
                    "batch_size": 2,
                }
            },
            "schedule": {"num_increments": int(number), "num_tokens": args.tokens},
            "recovery": {
                **WAYS[way].get("recovery", {}),
                "compile": args.compile,
                "checkpoint_seconds": CHECKPOINT_SECONDS if args.work else None,
            },
            "evaluation": {"speed": False},
            "output": {"dtype": "float32", "keep": "final"},
        }
    )


def _measure(variant: str, args: argparse.Namespace) -> Row:
    """Run one variant, and evaluate what it publishes last."""
    with tempfile.TemporaryDirectory(prefix="espalier-bench-") as scratch:
        work = Path(scratch)
        if args.work is not None:
            work = args.work / f"{variant}-{args.sparsity:g}-{args.tokens}"
        events = _events(work, recipe_of(variant, args), args)
        published = [event for event in events if isinstance(event, IncrementFinished)]
        perplexity, suites = _evaluate(work / "out" / published[-1].directory, args)
    final = published[-1].increment
    scores = [e for e in events if isinstance(e, EvaluationFinished) and e.increment == final]
    recovered = [e for e in scores if e.stage == "recovered"]
    return Row(
        variant=variant,
        sparsity=args.sparsity,
        tokens=args.tokens,
        num_parameters=published[-1].num_parameters,
        perplexity=perplexity,
        pruned_perplexity=_value(scores, "pruned", "perplexity"),
        held_out_perplexity=_value(scores, "recovered", "perplexity"),
        domain_losses={e.metric: e.value for e in recovered if e.suite == "domains"},
        suites=suites,
        phase_seconds=_phase_seconds(events),
        load_average=os.getloadavg()[0],
        threads=args.threads,
        # Of a step that was taken twice, by a run that was interrupted, the second time.
        losses=list({e.num_tokens: e.loss for e in events if isinstance(e, StepFinished)}.items()),
        cuts=sorted({e.num_tokens for e in events if isinstance(e, PruneFinished)}),
    )


def _events(work: Path, recipe: Recipe, args: argparse.Namespace) -> list[Event]:
    """All events of a run in `work`, which goes on there if it was interrupted."""
    log = work / "events.jsonl"
    work.mkdir(parents=True, exist_ok=True)
    if not any(isinstance(event, RunFinished) for event in _logged(log)):
        _run(work, recipe, args, log)
    return _logged(log)


def _logged(log: Path) -> list[Event]:
    lines = log.read_text().splitlines() if log.exists() else []
    return [parse_event(line) for line in lines]


def _run(work: Path, recipe: Recipe, args: argparse.Namespace, log: Path) -> None:
    path, out_dir = work / "recipe.json", work / "out"
    path.write_text(recipe.model_dump_json())
    reading, writing = os.pipe()
    command = [sys.executable, "-m", "pruning", "run", str(path), "--out", str(out_dir)]
    command += ["--events-fd", str(writing), "--device", args.device]
    command += ["--threads", str(args.threads)]
    kept = sorted(out_dir.glob("increment-*")) or sorted(out_dir.glob("partial-0001"))
    if kept:
        command += ["--resume", str(kept[-1])]
    environment = child_environment(os.environ, recipe.model_dump(mode="json"))
    with (
        subprocess.Popen(command, env=environment, pass_fds=[writing]) as child,
        log.open("a") as f,
    ):
        os.close(writing)
        with os.fdopen(reading, encoding="utf-8") as pipe:
            for line in pipe:
                f.write(line)
                f.flush()
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, command)


def _value(scores: list[EvaluationFinished], stage: str, suite: str) -> float:
    return next(e.value for e in scores if (e.stage, e.suite) == (stage, suite))


def _phase_seconds(events: list[Event]) -> dict[str, float]:
    """How long a run was in each of its phases; not how long it waited to be called again."""
    seconds: dict[str, float] = {}
    phase = ""
    for event, after in pairwise(events):
        phase = event.phase if isinstance(event, PhaseChanged) else phase
        if not (isinstance(after, PhaseChanged) and after.phase == "loading"):
            elapsed = (after.at - event.at).total_seconds()
            seconds[phase] = seconds.get(phase, 0.0) + elapsed
    return seconds


Suites = dict[str, tuple[float, float | None]]


def _evaluate(directory: Path, args: argparse.Namespace) -> tuple[float, Suites]:
    """Perplexity of the first tokens of the text in windows of 2048, and the suites' scores, each
    with its standard error; in bf16 autocast."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    model = model.to(args.device).eval()
    ids = tokenizer(args.evaluation.read_text(), add_special_tokens=False)["input_ids"]
    perplexity = evaluate_perplexity(
        model,
        [np.array(ids[: args.evaluation_tokens], dtype=np.uint32)],
        context_length=CONTEXT_LENGTH,
        precision="bfloat16",
        data_fingerprint=args.evaluation.name,
    ).value
    if args.suites is None:
        return perplexity, {}
    evaluation = Evaluation.model_validate(
        {"suites": json.loads(args.suites.read_text()), "precision": "bfloat16"}
    )
    with tempfile.TemporaryDirectory(prefix="espalier-bench-") as scratch:
        scores = list(run_suites(model, tokenizer, evaluation, directory=Path(scratch)))
    chosen = [score for score in scores if score.metric == "acc_norm"]
    return perplexity, {score.suite: (score.value, score.stderr) for score in chosen}


if __name__ == "__main__":
    main()
