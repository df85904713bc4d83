"""How much faster pruned models are: prefill and decode of dense and pruned in one process.

    python -m bench.speed --model DIR [--sparsity 0.2 0.4] [--repeats 7] [--threads 2]

Layers of equal width, in multiples of 64. Only shapes count, so groups go by the magnitude of
their weights and nothing is trained. The models take turns; the median of each counts. Times are
processor seconds, so that a busy machine blurs them less; wall-clock times stand beside them.
"""

import argparse
import copy
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from bench.figures import Figure
from pruning.allocation.allocate import allocate
from pruning.events import LayerWidths
from pruning.importance.measure import measure_importance
from pruning.models.geometry import (
    count_parameters,
    count_prunable_parameters,
    geometry_of,
    layer_widths,
    unpruned_plan,
)
from pruning.models.load import load_base_model
from pruning.recipe_parts.method import Allocation, Constraints, Importance
from pruning.recipe_parts.model import PathModel
from pruning.surgery import apply_plan

RESULTS = Path(__file__).parent / "results"
_IDEAL_SHARE = 0.85
_SPEED_UPS = {0.2: 1.20, 0.4: 1.55}
"""What prefill must gain at a sparsity, whatever is ideal."""
_PREFILL = (4, 512)
_PROMPT_TOKENS, _DECODE_TOKENS = 64, 32


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model; seconds are medians over the repeats."""

    sparsity: float
    num_parameters: int
    widths: LayerWidths
    seconds: Mapping[str, Mapping[str, float]]
    """By what is done (`prefill`, `decode`), processor and wall-clock."""
    flops_per_token: float
    """With a head for every token, and causal attention over the prefill's length."""
    flops_in_layers: float
    """The same without the head, of which a prefill needs the last token's alone."""


def pruned(model: PreTrainedModel, sparsity: float) -> PreTrainedModel:
    """A copy with a share of the decoder layers' parameters gone, the same from every layer."""
    narrow, plan = copy.deepcopy(model), unpruned_plan(model)
    scores = measure_importance(narrow, [torch.zeros(1, 8).long()], Importance(kind="magnitude"))
    removed = round(sparsity * count_prunable_parameters(model))
    constraints = Constraints(width_multiple=64, min_intermediate_size=64)
    cut, _ = allocate(
        scores,
        plan,
        geometry_of(model),
        target_num_parameters=count_parameters(model) - removed,
        allocation=Allocation(kind="uniform", layout="uniform", constraints=constraints),
    )
    apply_plan(narrow, cut, previous=plan)
    return narrow


@torch.no_grad()
def prefill(model: PreTrainedModel) -> None:
    """Read sequences, and predict what follows each."""
    model(_ids(model, *_PREFILL), use_cache=True, logits_to_keep=1)


@torch.no_grad()
def decode(model: PreTrainedModel) -> None:
    """Write tokens after a prompt, one at a time."""
    output = model(_ids(model, 1, _PROMPT_TOKENS), use_cache=True, logits_to_keep=1)
    for _ in range(_DECODE_TOKENS):
        following = output.logits.argmax(dim=-1)
        output = model(following, past_key_values=output.past_key_values, use_cache=True)


def _ids(model: PreTrainedModel, batch: int, length: int) -> Tensor:
    # Any ids do: speed does not depend on which tokens they are.
    numbers = torch.arange(batch * length) % int(model.config.vocab_size)
    return numbers.view(batch, length)


_TASKS: Mapping[str, Callable[[PreTrainedModel], None]] = {"prefill": prefill, "decode": decode}


def measure(models: Mapping[float, PreTrainedModel], repeats: int) -> list[Row]:
    """Every model and task in turn, after one warm-up of each."""
    times: dict[tuple[float, str], list[tuple[float, float]]] = {}
    for repeat in range(repeats + 1):
        for sparsity, model in models.items():
            for name, task in _TASKS.items():
                started = time.process_time(), time.perf_counter()
                task(model)
                spent = time.process_time() - started[0], time.perf_counter() - started[1]
                if repeat:
                    times.setdefault((sparsity, name), []).append(spent)
    return [_row(sparsity, model, times) for sparsity, model in models.items()]


def _row(
    sparsity: float,
    model: PreTrainedModel,
    times: Mapping[tuple[float, str], list[tuple[float, float]]],
) -> Row:
    seconds = {
        name: {
            clock: statistics.median(spent[index] for spent in times[sparsity, name])
            for index, clock in enumerate(("cpu", "wall"))
        }
        for name in _TASKS
    }
    in_layers = 2.0 * count_prunable_parameters(model) + _attention_flops(model)
    head = model.get_output_embeddings().get_parameter("weight").numel()
    return Row(
        sparsity=sparsity,
        num_parameters=count_parameters(model),
        widths=layer_widths(model)[0],
        seconds=seconds,
        flops_per_token=in_layers + 2.0 * head,
        flops_in_layers=in_layers,
    )


def _attention_flops(model: PreTrainedModel) -> float:
    """Of a token of the prefill, on average: each sees half of its sequence."""
    head_dim, length = int(model.config.head_dim), _PREFILL[1]
    heads = sum(layer.num_attention_heads for layer in layer_widths(model))
    return 2.0 * 2.0 * heads * head_dim * length / 2


def speed_up(dense: Row, row: Row, task: str, clock: str = "cpu") -> float:
    """How many times faster than the dense model."""
    return dense.seconds[task][clock] / row.seconds[task][clock]


def bars_of(rows: list[Row]) -> list[Figure]:
    """What the project set itself for the speed of pruned models."""
    dense, *others = rows
    bars: list[Figure] = []
    for row in others:
        removed, gained = f"{row.sparsity:.0%} removed", speed_up(dense, row, "prefill")
        ideal = dense.flops_per_token / row.flops_per_token
        bars.append(
            Figure(
                what=f"prefill, {removed}: share of the ideal {ideal:.2f} x",
                figure=gained / ideal,
                bar=_IDEAL_SHARE,
                at_least=True,
            )
        )
        if row.sparsity in _SPEED_UPS:
            bars.append(
                Figure(
                    what=f"prefill, {removed}: times the dense model",
                    figure=gained,
                    bar=_SPEED_UPS[row.sparsity],
                    at_least=True,
                )
            )
    return bars


def table(rows: list[Row]) -> str:
    """Each model's times beside the dense one's."""
    dense = rows[0]
    lines = [
        f"{'removed':>8} {'parameters':>12} {'channels':>8} {'heads':>6} "
        f"{'prefill s':>10} {'x':>5} {'decode s':>9} {'x':>5} {'ideal':>6} {'layers':>6}"
    ]
    for row in rows:
        width = row.widths
        lines.append(
            f"{row.sparsity:>8.0%} {row.num_parameters:>12,} {width.intermediate_size:>8} "
            f"{width.num_attention_heads:>3}/{width.num_key_value_heads:<2} "
            f"{row.seconds['prefill']['cpu']:>10.3f} {speed_up(dense, row, 'prefill'):>5.2f} "
            f"{row.seconds['decode']['cpu']:>9.3f} {speed_up(dense, row, 'decode'):>5.2f} "
            f"{dense.flops_per_token / row.flops_per_token:>6.2f} "
            f"{dense.flops_in_layers / row.flops_in_layers:>6.2f}"
        )
    return "\n".join(lines)


def report(rows: list[Row], bars: list[Figure], args: argparse.Namespace) -> dict[str, Any]:
    """Everything found, and how."""
    return {
        "created_at": datetime.now(UTC).isoformat(),
        "command": "python -m bench.speed",
        "model": args.model.name,
        "protocol": {
            "device": "cpu",
            "dtype": "bfloat16",
            "threads": args.threads,
            "prefill": "4 x 512 tokens, logits of the last, cache filled",
            "decode": f"{_DECODE_TOKENS} tokens after {_PROMPT_TOKENS}, batch 1",
            "repeats": args.repeats,
            "statistic": "median of processor seconds, models in turn",
            "allocation": "uniform over layers, layout uniform, width_multiple 64",
            "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
            "machine_load": os.getloadavg(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "rows": [{**asdict(row), "widths": row.widths.model_dump()} for row in rows],
        "speed_ups": [
            {
                "sparsity": row.sparsity,
                **{
                    f"{task}_{clock}": speed_up(rows[0], row, task, clock)
                    for task in _TASKS
                    for clock in ("cpu", "wall")
                },
            }
            for row in rows[1:]
        ],
        "bars": [bar.as_json() for bar in bars],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.2, 0.4])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    dense = load_base_model(PathModel(path=str(args.model.resolve())), dtype=torch.bfloat16).model
    models = {0.0: dense, **{share: pruned(dense, share) for share in args.sparsity}}
    rows = measure(models, args.repeats)
    bars = bars_of(rows)
    print(table(rows))
    print("\n".join(bar.line() for bar in bars))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "speed.json").write_text(json.dumps(report(rows, bars, args), indent=2) + "\n")


if __name__ == "__main__":
    main()
