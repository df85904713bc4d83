"""How good pruned models are without any training: every preset, several sizes, one table.

    python -m bench.quality --model DIR --data DIR [--presets espalier flap] [--sparsity 0.2 0.4]

`--data` holds `c4.calibration.jsonl.gz`, `wikitext2.test.tokens.txt` and, for zero-shot accuracy,
`arc_easy.first200.jsonl` and `piqa.first200.jsonl`. A preset may carry changes
to its recipe, as in `espalier,importance.ridge=0.003`, which is how the ablations of docs/method.md
were made. Each preset prunes in a process of its own, as a job would, on the same text, and nothing
else runs meanwhile; only then is it evaluated. With `--work DIR` what has been pruned and evaluated
is kept, and a bench that was cut short goes on.
"""

import argparse
import json
import math
import os
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
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

import espalier.loading  # noqa: F401  Lets transformers open models whose layers differ.
from bench.plot import plot_quality
from bench.pruning_run import REPORTS, Report, read_reports
from bench.quality_table import CONTEXT_LENGTHS, Row, figures_of, line_of, verdicts_on
from pruning.evaluation.perplexity import evaluate_perplexity
from pruning.evaluation.suites import run_suites
from pruning.models.attention import blockwise_attention
from pruning.models.geometry import count_parameters, count_prunable_parameters
from pruning.presets import PRESETS
from pruning.recipe import Recipe
from pruning.recipe_parts.evaluation import Evaluation
from worker.child import offline_environment

CALIBRATION = "c4.calibration.jsonl.gz"
EVALUATION = "wikitext2.test.tokens.txt"
TASKS = {"arc_easy": "arc_easy.first200.jsonl", "piqa": "piqa.first200.jsonl"}
PROMPT = "{query}\nAnswer:"
RESULTS = Path(__file__).parent / "results"

DEFAULTS = {
    "espalier": {
        "importance": {"calibration": {"num_samples": 64, "sequence_length": 512, "batch_size": 2}},
    },
    "adapt_pruner": {
        "schedule": {"num_increments": 10},
        "importance": {"calibration": {"num_samples": 32, "sequence_length": 64, "batch_size": 32}},
    },
    "llm_pruner": {
        "importance": {"calibration": {"num_samples": 10, "sequence_length": 64, "batch_size": 1}},
    },
    "flap": {
        "importance": {
            "calibration": {"num_samples": 512, "sequence_length": 128, "batch_size": 16}
        },
    },
    "slicegpt": {
        "importance": {"calibration": {"num_samples": 64, "sequence_length": 512, "batch_size": 4}},
    },
    "minitron": {
        "importance": {"calibration": {"num_samples": 64, "sequence_length": 512, "batch_size": 4}},
    },
    "sheared_llama": {
        "importance": {
            "calibration": {"num_samples": 128, "sequence_length": 256, "batch_size": 1}
        },
    },
}
"""The size of the work: increments for each 20 % where a preset leaves them open, and text. A peer
gets what its own code got for the figures of `PEERS`, or, where there are none, 32,768 tokens at
most."""


def main() -> None:
    args = _arguments()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory(prefix="espalier-bench-") as scratch:
        work = args.work or Path(scratch)
        pruned = [_prune(preset, args, work) for preset in args.presets]
        if not args.prune_only:
            _compare([size for sizes in pruned for size in sizes], args, work)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--presets", nargs="+", default=sorted(PRESETS))
    parser.add_argument("--sparsity", nargs="+", type=float, default=[0.2, 0.4, 0.6])
    parser.add_argument("--tokens", type=int, default=59_392)
    parser.add_argument("--rows", type=int, default=200, help="Of each task; 0: no accuracy.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, help="Keeps what is done; default: thrown away.")
    parser.add_argument("--prune-only", action="store_true", help="Leave evaluation for later.")
    parser.add_argument("--name", default="quality", help="Of the files under bench/results.")
    parser.add_argument("--merge", action="store_true", help="Keep what else those files hold.")
    return parser.parse_args()


@dataclass(frozen=True, kw_only=True)
class _Pruned:
    """A checkpoint that is the first to reach a share removed."""

    preset: str
    sparsity: float
    report: Report


def _prune(preset: str, args: argparse.Namespace, work: Path) -> list[_Pruned]:
    """One run over all sizes, or one for each where the preset cuts once."""
    shares = sorted(args.sparsity)
    at_once = _recipe(preset, args, shares).schedule.num_increments == 1
    return [
        found
        for some in ([[share] for share in shares] if at_once else [shares])
        for found in _run(preset, args, some, work)
    ]


def _run(
    preset: str, args: argparse.Namespace, shares: list[float], work: Path
) -> Iterator[_Pruned]:
    """In a process of its own, with the environment of a job."""
    directory = work / "-".join([preset.replace("/", "_"), *(f"{s:g}" for s in shares)])
    directory.mkdir(parents=True, exist_ok=True)
    recipe, path = _recipe(preset, args, shares).model_dump_json(), directory / "recipe.json"
    if path.exists() and path.read_text() != recipe:
        raise SystemExit(f"{directory} holds the work of another recipe: give another --work")
    path.write_text(recipe)
    command = [sys.executable, "-m", "bench.pruning_run", str(path), str(directory / "out")]
    command += ["--threads", str(args.threads)]
    subprocess.run(command, check=True, env=offline_environment(os.environ))
    waiting, num_parameters, num_prunable = list(shares), *_base_sizes(args)
    for report in read_reports(directory / "out" / REPORTS):
        removed = (num_parameters - report.num_parameters) / num_prunable
        # A run ends at its last share, whatever a head of its own adds to the parameters.
        while waiting and (removed >= waiting[0] - 1e-6 or report.final):
            yield _Pruned(preset=preset, sparsity=waiting.pop(0), report=report)


def _base_sizes(args: argparse.Namespace) -> tuple[int, int]:
    """Parameters of the base model, and those of its decoder layers."""
    base = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    return count_parameters(base), count_prunable_parameters(base)


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


def _compare(sizes: list[_Pruned], args: argparse.Namespace, work: Path) -> None:
    """Evaluate every checkpoint beside the dense model, and write the table."""
    dense = _earlier(args).get("dense") or _quality(args.model, args, work)
    print(f"dense: {figures_of(dense)}", flush=True)
    num_parameters, num_prunable = _base_sizes(args)
    rows: list[Row] = []
    for size in sizes:
        row = Row(
            preset=size.preset,
            sparsity=size.sparsity,
            removed=(num_parameters - size.report.num_parameters) / num_prunable,
            num_parameters=size.report.num_parameters,
            base_bytes=4 * num_parameters,
            **_quality(Path(size.report.directory), args, work),
            cpu_seconds=size.report.cpu_seconds,
            peak_bytes=size.report.peak_bytes,
        )
        rows.append(row)
        print(line_of(row), flush=True)
    # Read once more: another bench may have ended meanwhile.
    kept = [Row(**row) for row in _earlier(args).get("rows", [])]
    anew = {(row.preset, row.sparsity) for row in rows}
    rows += [row for row in kept if (row.preset, row.sparsity) not in anew]
    _write(args, dense, sorted(rows, key=lambda row: (row.preset, row.sparsity)))


def _earlier(args: argparse.Namespace) -> dict[str, Any]:
    """What an earlier bench found over as much text, if its rows are to be kept."""
    path = RESULTS / f"{args.name}.json"
    if not args.merge or not path.exists():
        return {}
    found: dict[str, Any] = json.loads(path.read_text())
    if (found["model"], found["tokens"]) != (args.model.name, args.tokens):
        raise SystemExit(f"{path} was measured on another model or text: give another --name")
    if args.rows and found["zero_shot_rows"] != args.rows:
        raise SystemExit(f"{path} was measured on other rows of the tasks: give another --name")
    return found


def _quality(directory: Path, args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Perplexities at each of `CONTEXT_LENGTHS` over the first tokens of the text, and accuracy.

    In bf16 autocast, as the peers were measured; accuracy is the mean over `TASKS`, per cent.
    """
    inside = directory.is_relative_to(work)
    kept = (directory if inside else work) / f"quality-{args.tokens}-{args.rows}.json"
    if kept.exists():
        stored: dict[str, Any] = json.loads(kept.read_text())
        return stored
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    text = (args.data / EVALUATION).read_text()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"][: args.tokens]
    found: dict[str, Any] = {"accuracy": None, "accuracy_stderr": None}
    with blockwise_attention(model):
        for length in CONTEXT_LENGTHS:
            found[f"perplexity_{length}"] = evaluate_perplexity(
                model,
                [np.array(ids, dtype=np.uint32)],
                context_length=length,
                precision="bfloat16",
                data_fingerprint=EVALUATION,
            ).value
    if args.rows:
        found |= _accuracy(model, tokenizer, args)
    kept.write_text(json.dumps(found))
    return found


def _accuracy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, args: argparse.Namespace
) -> dict[str, float]:
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
    return {
        "accuracy": 100 * sum(score.value for score in chosen) / len(chosen),
        "accuracy_stderr": 100 * math.sqrt(sum(variances)) / len(chosen),
    }


def _write(args: argparse.Namespace, dense: dict[str, float | None], rows: list[Row]) -> None:
    verdicts = list(verdicts_on(rows))
    print("\n".join(verdict.line() for verdict in verdicts))
    RESULTS.mkdir(exist_ok=True)
    found = {
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": args.model.name,
        "tokens": args.tokens,
        "zero_shot_rows": args.rows or _earlier(args).get("zero_shot_rows", 0),
        "threads": args.threads,
        "context_lengths": CONTEXT_LENGTHS,
        "dense": dense,
        "rows": [asdict(row) for row in rows],
        "bars": [verdict.as_json() for verdict in verdicts],
    }
    (RESULTS / f"{args.name}.json").write_text(json.dumps(found, indent=2) + "\n")
    plot_quality(found, RESULTS / f"{args.name}.png")


if __name__ == "__main__":
    main()
