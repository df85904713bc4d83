"""What recovery training is worth: equal tokens, several ways to spend them, one table.

    python -m bench.recovery --model DIR --train DIR --evaluation FILE
        [--sparsity 0.2] [--tokens 200000] [--variants fresh-3 default-3 distilled-6-dynamic …]

A variant is `WAY-INCREMENTS[-dynamic]`. Ways, all but the last two cut by the default method:

- `fresh`: cross-entropy, Adam's moments forgotten at every cut
- `sliced`: cross-entropy, moments cut like the weights
- `distilled`: the same, and learning from the base model
- `default`: what a recipe says that says nothing of recovery
- `official`: Adapt-Pruner's allocation, cross-entropy, moments forgotten, its learning rate
- `official_fast`: the same with a learning rate that suits few tokens better

Each runs in a process of its own, started as the worker starts its child. Results are kept in one
file, so that a later call with other variants completes the table.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import espalier.loading  # noqa: F401  Lets transformers open models whose layers differ.
from bench.plot import plot_recovery
from pruning.evaluation.perplexity import evaluate_perplexity
from pruning.events import (
    EvaluationFinished,
    Event,
    IncrementFinished,
    PruneFinished,
    RunFailed,
    StepFinished,
    parse_event,
)
from pruning.recipe import Recipe
from worker.child import child_environment

RESULTS = Path(__file__).parent / "results"
CONTEXT_LENGTH = 2048
MAX_RATIO_TO_OFFICIAL = 0.85
MAX_RATIO_TO_DENSE = 1.15
TOKENS_TO_DENSE = 1_000_000
WAYS = ("fresh", "sliced", "distilled", "default", "official", "official_fast")
OFFICIAL = ("official", "official_fast")
VARIANTS = [
    *(f"{way}-{n}" for way in ("fresh", "sliced", "distilled") for n in (1, 3, 6)),
    *(f"{way}-3-dynamic" for way in ("sliced", "distilled")),
    *("default-3", "official-3", "official_fast-3"),
]

_CROSS_ENTROPY = {"distillation": None}
_FRESH = {"fresh_moments": True, "distillation": None, "betas": [0.9, 0.999]}
_RECOVERY: dict[str, dict[str, Any]] = {
    "fresh": {"fresh_moments": True, "distillation": None},
    "sliced": _CROSS_ENTROPY,
    "distilled": {"distillation": {"teacher": "base", "weight": 0.5}},
    "default": {},
    "official": {**_FRESH, "learning_rate": {"peak": 2e-5}},
    "official_fast": {**_FRESH, "learning_rate": {"peak": 1e-4}},
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One run: what it cost and what came out."""

    variant: str
    sparsity: float
    tokens: int
    num_parameters: int
    perplexity: float
    pruned_perplexity: float
    """Before any training, of the last increment, on the held-out text of the domains."""
    held_out_perplexity: float
    domain_losses: Mapping[str, float]
    suites: Mapping[str, tuple[float, float | None]]
    """Zero-shot scores and their standard errors, where suites were asked for."""
    cpu_seconds: float
    wall_seconds: float
    load_average: float
    losses: list[tuple[int, float]]
    cuts: list[int]

    @property
    def accuracy(self) -> float | None:
        """The mean over the suites."""
        values = [value for value, _ in self.suites.values()]
        return sum(values) / len(values) if values else None


@dataclass(frozen=True, kw_only=True)
class Bar:
    """What was promised of one figure."""

    name: str
    figure: float
    bar: float

    @property
    def word(self) -> str:
        return "met" if self.figure <= self.bar else "MISSED"


def main() -> None:
    args = _arguments()
    torch.set_num_threads(args.threads)
    path = args.results / f"{args.name}.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"rows": []}
    dense = _perplexity(args.model, args)
    print(f"dense: {dense:.2f}", flush=True)
    for variant in args.variants:
        row = _measure(variant, args)
        found = _merged(found, row, args, dense)
        rows = [_row(fields) for fields in found["rows"]]
        bars = list(_bars(rows, dense))
        found["bars"] = [asdict(bar) | {"verdict": bar.word} for bar in bars]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n")
        plot_recovery(found, path.with_suffix(".png"))
        print(_line(row), flush=True)
    for bar in found.get("bars", []):
        print(f"{bar['name']:<64} {bar['figure']:7.3f}  bar ≤ {bar['bar']:<6g} {bar['verdict']}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--train", type=Path, required=True, help="one file per domain")
    parser.add_argument("--evaluation", type=Path, required=True, help="WikiText-2 test")
    parser.add_argument("--evaluation-tokens", type=int, default=59_392)
    parser.add_argument("--suites", type=Path, help="JSON list of suites, as in a recipe")
    parser.add_argument("--sparsity", type=float, default=0.2)
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--calibration-samples", type=int, default=64, help="in each increment")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--variants", nargs="+", default=VARIANTS, type=_variant)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--name", default="recovery", help="Of the files under --results.")
    return parser.parse_args()


def _variant(text: str) -> str:
    way, _, rest = text.partition("-")
    number, _, weights = rest.partition("-")
    if way not in WAYS or not number.isdigit() or weights not in ("", "dynamic"):
        raise argparse.ArgumentTypeError(f"not WAY-INCREMENTS[-dynamic]: {text}; ways: {WAYS}")
    return text


def recipe_of(variant: str, args: argparse.Namespace) -> Recipe:
    """The run that a variant stands for."""
    way, number, *dynamic = variant.split("-")
    return Recipe.model_validate(
        {
            "model": str(args.model.resolve()),
            "target": {"sparsity": args.sparsity},
            "data": {
                "train": {"kind": "path", "path": str(args.train.resolve())},
                "mixture": {"kind": "dynamic" if dynamic else "static", "update_steps": 10},
            },
            "method": "adapt_pruner" if way in OFFICIAL else "espalier",
            "importance": {
                "calibration": {
                    "num_samples": args.calibration_samples,
                    "sequence_length": 512,
                    "batch_size": 2,
                }
            },
            "schedule": {"num_increments": int(number), "num_tokens": args.tokens},
            "recovery": {**_RECOVERY[way], "compile": args.compile},
            "evaluation": {
                "speed": False,
                "suites": json.loads(args.suites.read_text()) if args.suites else [],
            },
            "output": {"dtype": "float32", "keep": "final"},
        }
    )


def _measure(variant: str, args: argparse.Namespace) -> Row:
    """Run one variant, and evaluate what it publishes last."""
    recipe = recipe_of(variant, args)
    with tempfile.TemporaryDirectory(prefix="espalier-bench-") as scratch:
        out_dir = Path(scratch) / "out"
        path = Path(scratch) / "recipe.json"
        path.write_text(recipe.model_dump_json())
        started = time.perf_counter(), os.times().children_user + os.times().children_system
        events = list(_run(path, out_dir, recipe, args.threads))
        wall = time.perf_counter() - started[0]
        cpu = os.times().children_user + os.times().children_system - started[1]
        published = [event for event in events if isinstance(event, IncrementFinished)]
        perplexity = _perplexity(out_dir / published[-1].directory, args)
    final = published[-1].increment
    scores = [e for e in events if isinstance(e, EvaluationFinished) and (e.increment == final)]
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
        suites={
            f"{e.suite}.{e.metric}": (e.value, e.stderr)
            for e in recovered
            if e.suite not in ("domains", "perplexity", "speed")
        },
        cpu_seconds=cpu,
        wall_seconds=wall,
        load_average=os.getloadavg()[0],
        losses=[(e.num_tokens, e.loss) for e in events if isinstance(e, StepFinished)],
        cuts=[e.num_tokens for e in events if isinstance(e, PruneFinished)],
    )


def _run(path: Path, out_dir: Path, recipe: Recipe, threads: int) -> Iterator[Event]:
    reading, writing = os.pipe()
    command = [sys.executable, "-m", "pruning", "run", str(path), "--out", str(out_dir)]
    command += ["--events-fd", str(writing), "--device", "cpu", "--threads", str(threads)]
    environment = child_environment(os.environ, recipe.model_dump(mode="json"))
    with subprocess.Popen(command, env=environment, pass_fds=[writing]) as child:
        os.close(writing)
        with os.fdopen(reading, encoding="utf-8") as pipe:
            for line in pipe:
                event = parse_event(line)
                if isinstance(event, RunFailed):
                    sys.exit(f"{event.code}: {event.message}")
                yield event
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, command)


def _value(scores: list[EvaluationFinished], stage: str, suite: str) -> float:
    return next(e.value for e in scores if (e.stage, e.suite) == (stage, suite))


def _perplexity(directory: Path, args: argparse.Namespace) -> float:
    """Over the first tokens of the text, in windows of 2048, in bf16 autocast."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    ids = tokenizer(args.evaluation.read_text(), add_special_tokens=False)["input_ids"]
    return evaluate_perplexity(
        model,
        [np.array(ids[: args.evaluation_tokens], dtype=np.uint32)],
        context_length=CONTEXT_LENGTH,
        precision="bfloat16",
        data_fingerprint=args.evaluation.name,
    ).value


def _row(fields: Mapping[str, Any]) -> Row:
    return Row(**fields)


def _merged(
    found: Mapping[str, Any], row: Row, args: argparse.Namespace, dense: float
) -> dict[str, Any]:
    """What was found so far, with this row in place of an older one of the same variant."""
    key = (row.variant, row.sparsity, row.tokens)
    others = [
        other
        for other in found["rows"]
        if (other["variant"], other["sparsity"], other["tokens"]) != key
    ]
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": args.model.name,
        "evaluation": f"{args.evaluation.name}, first {args.evaluation_tokens} tokens",
        "context_length": CONTEXT_LENGTH,
        "calibration_samples": args.calibration_samples,
        "threads": args.threads,
        "dense": dense,
        "rows": [*others, asdict(row)],
    }


def _bars(rows: list[Row], dense: float) -> Iterator[Bar]:
    """The default against the best of the official recipe, wherever both were run alike."""
    for sparsity, tokens in dict.fromkeys((row.sparsity, row.tokens) for row in rows):
        alike = [row for row in rows if (row.sparsity, row.tokens) == (sparsity, tokens)]
        ours = [row for row in alike if row.variant.startswith("default-")]
        official = [row for row in alike if row.variant.split("-")[0] in OFFICIAL]
        what = f"at {sparsity:.0%} after {tokens:,} tokens"
        if ours and official:
            best, theirs = _best(ours), _best(official)
            ratio = best.perplexity / theirs.perplexity
            yield Bar(
                name=f"default / {theirs.variant} {what}", figure=ratio, bar=MAX_RATIO_TO_OFFICIAL
            )
            if best.accuracy is not None and theirs.accuracy is not None:
                lost = theirs.accuracy - best.accuracy
                yield Bar(name=f"accuracy lost to it {what}", figure=lost, bar=0.0)
        if ours and tokens >= TOKENS_TO_DENSE and sparsity <= 0.2:
            ratio = _best(ours).perplexity / dense
            yield Bar(name=f"default / dense {what}", figure=ratio, bar=MAX_RATIO_TO_DENSE)


def _best(rows: list[Row]) -> Row:
    return min(rows, key=lambda row: row.perplexity)


def _line(row: Row) -> str:
    accuracy = "" if row.accuracy is None else f"  accuracy {row.accuracy:.3f}"
    return (
        f"{row.variant:22s} {row.sparsity:4.0%} {row.tokens:9,} tokens  ppl {row.perplexity:8.2f}"
        f"  held out {row.pruned_perplexity:8.2f} → {row.held_out_perplexity:8.2f}"
        f"  {row.cpu_seconds:6.0f} CPU s{accuracy}"
    )


if __name__ == "__main__":
    main()
