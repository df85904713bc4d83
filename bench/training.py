"""How fast recovery training is, beside what else one would use; one table, in one run.

    python -m bench.training --model DIR --text FILE_OR_DIR [--steps 3] [--repeats 2]

`plain` (autocast, whole logits) and `trainer` (transformers' Trainer) run as a user would start
them; ours as the worker starts its child. Times are processor seconds, so that a busy machine
blurs them less. The loops take turns, and the median over all steps counts. A whole run at the end
says what a cut, a checkpoint and an evaluation cost.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from bench.figures import Figure
from pruning.recipe_parts.recovery import Recovery
from worker.child import child_environment

RESULTS = Path(__file__).parent / "results"
LOOPS = ("plain", "trainer", "ours", "ours_compiled")
CHECKPOINT_SECONDS = Recovery().checkpoint_seconds or float("inf")
TOKENS_OF_AN_INCREMENT = 200_000
"""What the costs of a cut and an evaluation are held against."""

_NO_HUB = {"model": {"source": "path"}, "data": {"train": []}}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One loop over all its repeats."""

    loop: str
    tokens_per_cpu_second: float
    tokens_per_second: float
    utilisation: float
    peak_gigabytes: float
    data_share: float | None
    first_step_seconds: float | None
    """With whatever it waits for, such as compilation."""


def measure(loop: str, args: argparse.Namespace) -> dict[str, Any]:
    """One run of one loop in a process of its own."""
    ours = loop not in ("plain", "trainer")
    environment = child_environment(os.environ, _NO_HUB) if ours else dict(os.environ)
    with tempfile.TemporaryDirectory() as out_dir:
        command = [
            *(sys.executable, "-m", "bench.training_loops", loop),
            *("--model", str(args.model), "--text", str(args.text), "--out", out_dir),
            *("--steps", str(args.steps), "--threads", str(args.threads)),
            *("--batch", str(args.batch), "--length", str(args.length)),
        ]
        done = subprocess.run(
            command,
            env=environment,
            cwd=Path(__file__).parents[1],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def summarise(loop: str, found: list[dict[str, Any]], args: argparse.Namespace) -> Row:
    """Medians over the steps of all repeats."""
    cpu = statistics.median(s for run in found for s in run["seconds"]["cpu"])
    wall = statistics.median(s for run in found for s in run["seconds"]["wall"])
    tokens = args.batch * args.length
    flops = flops_per_token(args, found[0]["num_parameters"]) * tokens
    ceiling = statistics.median(run["matmul_flops"] for run in found)
    return Row(
        loop=loop,
        # As if the threads had had the machine to themselves.
        tokens_per_cpu_second=args.threads * tokens / cpu,
        tokens_per_second=tokens / wall,
        utilisation=flops / cpu / ceiling,
        peak_gigabytes=max(run["peak_bytes"] for run in found) / 1e9,
        data_share=found[-1].get("data_share"),
        first_step_seconds=found[-1].get("first_step_seconds"),
    )


def flops_per_token(args: argparse.Namespace, num_parameters: int) -> float:
    """Forward and backward: 6 per parameter, and causal attention's two products."""
    config = AutoConfig.from_pretrained(args.model)
    width = config.num_attention_heads * config.head_dim
    return float(6 * num_parameters + 6 * config.num_hidden_layers * args.length * width)


def costs_of(run: Mapping[str, Any], row: Row) -> dict[str, float]:
    """Seconds of what stands beside training, and each as a share of it as recipes have it.

    A checkpoint comes every `checkpoint_seconds`; a cut, two evaluations and the publication once
    for each increment.
    """
    increment = TOKENS_OF_AN_INCREMENT / row.tokens_per_second
    seconds = {name: run[f"{name}_seconds"] for name in ("cut", "evaluation", "publication")}
    costs = {f"{name}_seconds": value for name, value in seconds.items()}
    costs["checkpoint_seconds"] = run["checkpoint_seconds"]
    costs["checkpoint_share"] = run["checkpoint_seconds"] / CHECKPOINT_SECONDS
    costs["cut_share"] = seconds["cut"] / increment
    costs["evaluation_share"] = 2 * seconds["evaluation"] / increment
    costs["publication_share"] = seconds["publication"] / increment
    costs["peak_gigabytes"] = run["peak_bytes"] / 1e9
    return costs


def bars_of(rows: Mapping[str, Row]) -> list[Figure]:
    """The bars that the project set itself for training."""
    best = max((rows["ours"], rows["ours_compiled"]), key=lambda row: row.tokens_per_cpu_second)
    gain = best.tokens_per_cpu_second / rows["plain"].tokens_per_cpu_second
    over_trainer = best.tokens_per_cpu_second / rows["trainer"].tokens_per_cpu_second
    return [
        Figure(what="times the plain loop", figure=gain, bar=2.1, at_least=True),
        Figure(what="times the Trainer", figure=over_trainer, bar=1.0, at_least=True),
        Figure(
            what="share of the matrix-product ceiling",
            figure=best.utilisation,
            bar=0.33,
            at_least=True,
        ),
        Figure(
            what="peak memory, GB",
            figure=best.peak_gigabytes,
            bar=5.5,
        ),
        Figure(
            what="share of training spent waiting for data",
            figure=best.data_share or 0.0,
            bar=0.02,
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {loop: [] for loop in LOOPS}
    for _ in range(args.repeats):
        for loop in LOOPS:
            found[loop].append(measure(loop, args))
    rows = {loop: summarise(loop, runs, args) for loop, runs in found.items()}
    costs = costs_of(measure("whole_run", args), rows["ours"])
    report(rows, costs, bars_of(rows), args)


def report(
    rows: Mapping[str, Row],
    costs: Mapping[str, float],
    bars: list[Figure],
    args: argparse.Namespace,
) -> None:
    """Print the table, the costs and the bars; keep them as JSON."""
    for row in rows.values():
        print(
            f"{row.loop:<14} {row.tokens_per_cpu_second:7.0f} tokens/s by CPU time "
            f"{row.tokens_per_second:7.0f} by the clock  {row.utilisation:5.1%} of the ceiling "
            f"{row.peak_gigabytes:5.2f} GB"
        )
    for name, value in costs.items():
        print(f"{name:<24} {value:8.4f}")
    for bar in bars:
        print(bar.line())
    args.results.mkdir(parents=True, exist_ok=True)
    kept = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_average": os.getloadavg()[0],
        "threads": args.threads,
        "batch": [args.batch, args.length],
        "steps": args.steps,
        "repeats": args.repeats,
        "rows": [asdict(row) for row in rows.values()],
        "costs": {**costs, "tokens_of_an_increment": TOKENS_OF_AN_INCREMENT},
        "bars": [bar.as_json() for bar in bars],
    }
    (args.results / "training.json").write_text(json.dumps(kept, indent=2) + "\n")


if __name__ == "__main__":
    main()
