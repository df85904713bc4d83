"""How good pruned models are without any training: every preset, several sizes, one table.

    python -m bench.quality --model DIR --data DIR [--presets espalier flap] [--sparsity 0.2 0.4]

`--data` holds `c4.calibration.jsonl.gz`, `wikitext2.test.tokens.txt` and, for zero-shot accuracy,
`arc_easy.first200.jsonl` and `piqa.first200.jsonl`. A preset may carry changes
to its recipe, as in `espalier,importance.ridge=0.003`, which is how the ablations of docs/method.md
were made. Each preset runs in a process of its own, on the same text, one after the other.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import espalier.loading  # noqa: F401  Lets transformers open models whose layers differ.
from bench.plot import plot_quality
from pruning.evaluation.perplexity import evaluate_perplexity
from pruning.evaluation.suites import run_suites
from pruning.models.geometry import count_parameters, count_prunable_parameters
from pruning.presets import PRESETS
from pruning.recipe import Recipe
from pruning.recipe_parts.evaluation import Evaluation

CALIBRATION = "c4.calibration.jsonl.gz"
EVALUATION = "wikitext2.test.tokens.txt"
TASKS = {"arc_easy": "arc_easy.first200.jsonl", "piqa": "piqa.first200.jsonl"}
PROMPT = "{query}\nAnswer:"
CONTEXT_LENGTHS = (2048, 128)
RESULTS = Path(__file__).parent / "results"

BARS = {0.2: (31.0, 81.0), 0.4: (60.0, 140.0), 0.6: (105.0, 245.0)}
"""Perplexity of the default at 2048 and 128 tokens, by share of decoder parameters removed."""
PEERS = {
    "adapt_pruner": {0.2: (34.5, 90.5), 0.4: (951.1, 1840.6), 0.6: (2712.0, 4927.9)},
    "llm_pruner": {0.2: (42.7, 92.9), 0.4: (316.1, 705.8), 0.6: (3396.2, 3898.9)},
    "flap": {0.2: (37.2, 101.4), 0.4: (636.3, 812.1), 0.6: (2690.4, 3762.4)},
    "slicegpt": {0.2: (147.9, 318.8), 0.4: (409.6, 703.4), 0.6: (1315.7, 1670.1)},
    "shortgpt": {0.2: (45.0, 111.2), 0.4: (408.5, 323.4), 0.6: (6648.9, 14226.4)},
}
"""What each system's own code reached on the same text: SmolLM2-135M-Instruct, 59,392 tokens."""
PEERS_ACCURACY = {
    "adapt_pruner": {0.2: 49.0, 0.4: 44.25, 0.6: 43.5},
    "llm_pruner": {0.2: 49.5, 0.4: 46.25, 0.6: 42.25},
    "flap": {0.2: 52.25, 0.4: 43.25, 0.6: 39.25},
    "slicegpt": {0.2: 42.75, 0.4: 39.25, 0.6: 40.5},
    "shortgpt": {0.2: 51.75, 0.4: 44.75, 0.6: 40.75},
}
"""Mean acc_norm of the two tasks, per cent; one standard error is about 2.4 points."""
MIN_ACCURACY = {0.2: 55.0}
MAX_CPU_SECONDS = 400.0
MAX_MODEL_SIZES = 3.0

DEFAULTS = {
    "espalier": {
        "schedule": {"num_increments": 2},
        "importance": {"calibration": {"num_samples": 40, "sequence_length": 512, "batch_size": 2}},
    },
    "adapt_pruner": {"schedule": {"num_increments": 8}},
}
"""The size of the work where a preset leaves it open: increments for each 20 %, and their text."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One pruned model."""

    preset: str
    sparsity: float
    removed: float
    num_parameters: int
    base_bytes: int
    perplexity_2048: float
    perplexity_128: float
    accuracy: float
    accuracy_stderr: float
    cpu_seconds: float
    peak_bytes: int


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A figure against its bar."""

    what: str
    figure: float
    bar: float
    at_least: bool = False

    @property
    def word(self) -> str:
        met = self.figure >= self.bar if self.at_least else self.figure <= self.bar
        return "met" if met else "MISSED"


def main() -> None:
    args = _arguments()
    torch.set_num_threads(args.threads)
    dense = _quality(args.model, args)
    print(f"dense: {_figures(dense)}", flush=True)
    rows: list[Row] = []
    for preset in args.presets:
        for row in _prune(preset, args):
            rows.append(row)
            print(_line(row), flush=True)
    if args.merge:
        rows = [*_earlier_rows(args), *rows]
    verdicts = [v for row in rows for v in _verdicts(row)]
    for verdict in verdicts:
        print(f"{verdict.what:44s} {verdict.figure:9.1f}  bar {verdict.bar:9.1f}  {verdict.word}")
    _write(args, dense, rows, verdicts)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--presets", nargs="+", default=sorted(PRESETS))
    parser.add_argument("--sparsity", nargs="+", type=float, default=[0.2, 0.4, 0.6])
    parser.add_argument("--tokens", type=int, default=59_392)
    parser.add_argument("--rows", type=int, default=200, help="Of each task.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--name", default="quality", help="Of the files under bench/results.")
    parser.add_argument(
        "--merge", action="store_true", help="Keep the rows of other presets in those files."
    )
    return parser.parse_args()


def _prune(preset: str, args: argparse.Namespace) -> Iterator[Row]:
    """One run over all sizes, or one for each where the preset cuts once."""
    shares = sorted(args.sparsity)
    at_once = _recipe(preset, args, shares).schedule.num_increments == 1
    for some in [[share] for share in shares] if at_once else [shares]:
        yield from _run(preset, args, some)


def _run(preset: str, args: argparse.Namespace, shares: list[float]) -> Iterator[Row]:
    """Checkpoints are evaluated as they come, and dropped at the end."""
    recipe = _recipe(preset, args, shares)
    with tempfile.TemporaryDirectory(prefix="espalier-bench-") as scratch:
        path = Path(scratch) / "recipe.json"
        path.write_text(recipe.model_dump_json())
        command = [sys.executable, "-m", "bench.pruning_run", str(path), f"{scratch}/out"]
        command += ["--threads", str(args.threads)]
        sizes = _sizes(args, shares)
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            for report in map(json.loads, child.stdout):
                for sparsity in sizes.reached(report["num_parameters"]):
                    yield _row(preset, sparsity, report, sizes, args)
        if child.returncode:
            raise subprocess.CalledProcessError(child.returncode, command)


@dataclass
class _Sizes:
    """What the base model counts, and the shares still to be reached, the smallest first."""

    num_parameters: int
    num_prunable: int
    waiting: list[float]

    def reached(self, num_parameters: int) -> Iterator[float]:
        """The shares that a model of this size is the first to reach."""
        while self.waiting and self.removed(num_parameters) >= self.waiting[0] - 1e-6:
            yield self.waiting.pop(0)

    def removed(self, num_parameters: int) -> float:
        return (self.num_parameters - num_parameters) / self.num_prunable


def _sizes(args: argparse.Namespace, shares: list[float]) -> _Sizes:
    base = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    return _Sizes(count_parameters(base), count_prunable_parameters(base), list(shares))


def _row(
    preset: str, sparsity: float, report: dict[str, Any], sizes: _Sizes, args: argparse.Namespace
) -> Row:
    return Row(
        preset=preset,
        sparsity=sparsity,
        removed=sizes.removed(report["num_parameters"]),
        num_parameters=report["num_parameters"],
        base_bytes=4 * sizes.num_parameters,
        **_quality(report["directory"], args),
        cpu_seconds=report["cpu_seconds"],
        peak_bytes=report["peak_bytes"],
    )


def _recipe(preset: str, args: argparse.Namespace, shares: list[float]) -> Recipe:
    name, *changes = preset.split(",")
    fields: dict[str, Any] = {
        "model": str(args.model.resolve()),
        "target": [{"sparsity": sparsity} for sparsity in shares],
        "data": {"train": str((args.data / CALIBRATION).resolve()), "max_held_out_tokens": 2048},
        "method": name,
        "recovery": {"kind": "none"},
        "evaluation": {"speed": False},
        "output": {"dtype": "float32"},
        **json.loads(json.dumps(DEFAULTS.get(name, {}))),
    }
    for change in changes:
        key, _, value = change.partition("=")
        *parents, last = key.split(".")
        part = fields
        for parent in parents:
            part = part.setdefault(parent, {})
        part[last] = json.loads(value)
    schedule = fields.setdefault("schedule", {})
    if "num_increments" in schedule:
        schedule["num_increments"] = max(1, round(schedule["num_increments"] * shares[-1] / 0.2))
    return Recipe.model_validate(fields)


def _quality(directory: Path | str, args: argparse.Namespace) -> dict[str, float]:
    """Perplexities at each of `CONTEXT_LENGTHS` over the first tokens of the text, and accuracy.

    In bf16 autocast, as the peers were measured; accuracy is the mean over `TASKS`, per cent.
    """
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    text = (args.data / EVALUATION).read_text()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"][: args.tokens]
    found = {
        f"perplexity_{length}": evaluate_perplexity(
            model,
            [np.array(ids, dtype=np.uint32)],
            context_length=length,
            precision="bfloat16",
            data_fingerprint=EVALUATION,
        ).value
        for length in CONTEXT_LENGTHS
    }
    suites = [
        {
            "kind": "rows",
            "name": task,
            "source": str((args.data / rows).resolve()),
            "prompt": PROMPT,
            "limit": args.rows,
        }
        for task, rows in TASKS.items()
    ]
    evaluation = Evaluation.model_validate(
        {"suites": suites, "precision": "bfloat16", "first_rows": 0}
    )
    with tempfile.TemporaryDirectory(prefix="espalier-bench-") as scratch:
        scores = list(run_suites(model, tokenizer, evaluation, directory=Path(scratch)))
    chosen = [score for score in scores if score.metric == "acc_norm"]
    variances = [(score.stderr or 0.0) ** 2 for score in chosen]
    found["accuracy"] = 100 * sum(score.value for score in chosen) / len(chosen)
    found["accuracy_stderr"] = 100 * math.sqrt(sum(variances)) / len(chosen)
    return found


def _verdicts(row: Row) -> Iterator[Verdict]:
    """The default against its bars, a re-implemented peer against its own code."""
    name = row.preset.split(",")[0]
    bars = BARS if name == "espalier" else PEERS.get(name, {})
    if row.sparsity in bars:
        for length, figure, bar in zip(
            CONTEXT_LENGTHS,
            (row.perplexity_2048, row.perplexity_128),
            bars[row.sparsity],
            strict=True,
        ):
            what = f"{row.preset} {row.sparsity:.0%} perplexity at {length}"
            yield Verdict(what=what, figure=figure, bar=bar)
    accuracies = MIN_ACCURACY if name == "espalier" else PEERS_ACCURACY.get(name, {})
    if row.sparsity in accuracies:
        what = f"{row.preset} {row.sparsity:.0%} accuracy"
        bar = accuracies[row.sparsity]
        yield Verdict(what=what, figure=row.accuracy, bar=bar, at_least=True)
    if name == "espalier" and math.isclose(row.sparsity, 0.2):
        yield Verdict(what=f"{row.preset} CPU seconds", figure=row.cpu_seconds, bar=MAX_CPU_SECONDS)
        yield Verdict(
            what=f"{row.preset} peak MB",
            figure=row.peak_bytes / 1e6,
            bar=MAX_MODEL_SIZES * row.base_bytes / 1e6,
        )


def _line(row: Row) -> str:
    return (
        f"{row.preset:40s} {row.sparsity:4.0%} removed {row.removed:6.2%}"
        f"  {_figures(asdict(row))}"
        f"  {row.cpu_seconds:6.0f} CPU s  {row.peak_bytes / 1e9:5.2f} GB"
    )


def _figures(quality: dict[str, Any]) -> str:
    return (
        f"ppl {quality['perplexity_2048']:9.2f} / {quality['perplexity_128']:9.2f}"
        f"  acc {quality['accuracy']:5.1f} ± {quality['accuracy_stderr']:.1f}"
    )


def _earlier_rows(args: argparse.Namespace) -> list[Row]:
    """What an earlier run over as much text found of presets that this one left out."""
    path = RESULTS / f"{args.name}.json"
    if not path.exists():
        return []
    found = json.loads(path.read_text())
    if (found["tokens"], found["zero_shot_rows"]) != (args.tokens, args.rows):
        raise SystemExit(f"{path} was measured on other text: give another --name")
    return [Row(**row) for row in found["rows"] if row["preset"] not in args.presets]


def _write(
    args: argparse.Namespace,
    dense: dict[str, float],
    rows: list[Row],
    verdicts: list[Verdict],
) -> None:
    RESULTS.mkdir(exist_ok=True)
    found = {
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": args.model.name,
        "tokens": args.tokens,
        "zero_shot_rows": args.rows,
        "threads": args.threads,
        "context_lengths": CONTEXT_LENGTHS,
        "dense": dense,
        "rows": [asdict(row) for row in rows],
        "bars": [asdict(v) | {"verdict": v.word} for v in verdicts],
    }
    (RESULTS / f"{args.name}.json").write_text(json.dumps(found, indent=2) + "\n")
    plot_quality(found, RESULTS / f"{args.name}.png")


if __name__ == "__main__":
    main()
