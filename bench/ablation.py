"""What each part of the default is worth: one calibration pass, many ways to cut by it.

    python -m bench.ablation --model DIR --data DIR [--samples 16] [--tokens 8192]

Small on purpose: each size is reached by one cut from the dense model unless a variant says
otherwise, and perplexity is that of the first part of the text, so figures compare with each other
and not with `bench.quality`. `--data` as there. Rows already in `bench/results/ablation.json` are
kept, and a bench that was cut short goes on.
"""

import argparse
import copy
import gzip
import json
from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bench.quality import CALIBRATION, EVALUATION
from bench.quality_table import CONTEXT_LENGTHS
from pruning.allocation.allocate import allocate
from pruning.allocation.widths import allowed_widths
from pruning.compensation import refit_outputs
from pruning.evaluation.perplexity import evaluate_perplexity
from pruning.importance.fisher import fisher_scores
from pruning.importance.moments import Moments, measure_moments
from pruning.models.attention import blockwise_attention
from pruning.models.geometry import (
    count_parameters,
    count_prunable_parameters,
    geometry_of,
    unpruned_plan,
)
from pruning.models.load import load_base_model
from pruning.newton import take_newton_step, thin_moments
from pruning.recipe_parts.method import Allocation, AllocationKind, Axis, Compensation
from pruning.recipe_parts.model import PathModel
from pruning.scores import Scores
from pruning.surgery import apply_plan

RESULTS = Path(__file__).parent / "results" / "ablation.json"
_LENGTH = 512
_BATCH = 2
_RIDGE = 0.01
_NUM_DOCUMENTS = 500


@dataclass(frozen=True, kw_only=True)
class Variant:
    """The default with one part changed; `text` is the share of the samples that it gets."""

    name: str
    metric: bool = True
    """Whether G weighs outputs, or all count alike."""
    axes: tuple[Axis, ...] = ("intermediate", "kv_group")
    allocation: AllocationKind = "layer_adaptive"
    compensation: Compensation = "least_squares"
    text: float = 1.0
    cuts: int = 1


VARIANTS = (
    Variant(name="least squares"),
    Variant(name="no repair", compensation="none"),
    Variant(name="G = identity", metric=False),
    Variant(name="MLP channels only", axes=("intermediate",)),
    Variant(name="and query heads", axes=("intermediate", "kv_group", "query_head")),
    Variant(name="the same share of every layer", allocation="uniform"),
    Variant(name="equal marginal cost", allocation="equal_marginal"),
    Variant(name="half the text", text=0.5),
    Variant(name="Newton step", compensation="newton"),
    Variant(
        name="equal marginal cost, Newton step",
        allocation="equal_marginal",
        compensation="newton",
    ),
    Variant(name="two cuts", cuts=2),
    Variant(name="two cuts, equal marginal cost", allocation="equal_marginal", cuts=2),
)
"""All without the Newton step but where it is named: what else is changed shows more without it."""


def main() -> None:
    args = _arguments()
    torch.set_num_threads(args.threads)
    bench = _Bench(args)
    found = _earlier(args) or {
        "model": args.model.name,
        "tokens": args.tokens,
        "samples": args.samples,
        "context_lengths": CONTEXT_LENGTHS,
        "dense": bench.perplexities(bench.model),
        "rows": [],
    }
    print("dense", found["dense"], flush=True)
    done = {(row["name"], row["sparsity"]) for row in found["rows"]}
    for variant in VARIANTS:
        for sparsity in args.sparsity:
            if (variant.name, sparsity) in done or (args.only and variant.name not in args.only):
                continue
            row = {**asdict(variant), "sparsity": sparsity, **bench.measure(variant, sparsity)}
            print(f"{variant.name:32s} {sparsity:4.0%} {row['perplexity']}", flush=True)
            found["rows"].append(row)
            found["created_at"] = datetime.now(UTC).isoformat(timespec="seconds")
            RESULTS.write_text(json.dumps(found, indent=2) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=16, help=f"Of {_LENGTH} tokens, a pass.")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--sparsity", nargs="+", type=float, default=[0.2, 0.4, 0.6])
    parser.add_argument("--only", nargs="+", help="Names of variants; default: all.")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def _earlier(args: argparse.Namespace) -> dict[str, Any] | None:
    if not RESULTS.exists():
        return None
    found: dict[str, Any] = json.loads(RESULTS.read_text())
    if (found["model"], found["tokens"], found["samples"]) != (
        args.model.name,
        args.tokens,
        args.samples,
    ):
        raise SystemExit(f"{RESULTS} was measured on another model or text: move it away")
    return found


class _Bench:
    """One dense model, what was measured of it, and the text for everything."""

    def __init__(self, args: argparse.Namespace) -> None:
        loaded = load_base_model(PathModel(path=str(args.model)), dtype=torch.float32)
        self.model, self.num_samples = loaded.model, args.samples
        self.windows = _windows(loaded.tokenizer, args.data / CALIBRATION)
        text = (args.data / EVALUATION).read_text()
        ids = loaded.tokenizer(text, add_special_tokens=False)["input_ids"][: args.tokens]
        self.evaluation = np.array(ids, dtype=np.uint32)
        # One pass over the dense model serves every variant that begins with the same text.
        self.first_moments = cache(lambda text: self._moments(self.model, self._text(0, text)))
        self.first_scores = cache(
            lambda text, metric: _scores(self.model, self.first_moments(text), metric)
        )

    def measure(self, variant: Variant, sparsity: float) -> dict[str, Any]:
        """The perplexities of the model cut as `variant` has it."""
        model = copy.deepcopy(self.model)
        plan, geometry, debt = unpruned_plan(model), geometry_of(model), None
        for cut in range(variant.cuts):
            if cut == 0:
                moments = self.first_moments(variant.text)
                scores = self.first_scores(variant.text, variant.metric)
            else:
                moments = self._moments(model, self._text(2 * cut, variant.text))
                scores = _scores(model, moments, variant.metric)
            removed = sparsity * (cut + 1) / variant.cuts * count_prunable_parameters(self.model)
            thinner, debt = allocate(
                scores,
                plan,
                geometry,
                target_num_parameters=count_parameters(self.model) - round(removed),
                allocation=Allocation(kind=variant.allocation),
                axes=variant.axes,
                debt=debt,
            )
            if variant.compensation != "none":
                refit_outputs(model, thinner, previous=plan, inputs=moments.inputs, ridge=_RIDGE)
            # The dense model's moments serve others too: what a step uses up is a copy.
            moments = replace(
                moments, inputs=dict(moments.inputs), gradients=dict(moments.gradients)
            )
            thin_moments(model, moments, thinner, previous=plan)
            apply_plan(model, thinner, previous=plan)
            if variant.compensation == "newton":
                batches = self._text(2 * cut + 1, variant.text)
                take_newton_step(model, batches, moments, precision="bfloat16")
            plan = thinner
        return {
            "removed": 1 - count_prunable_parameters(model) / count_prunable_parameters(self.model),
            "perplexity": self.perplexities(model),
        }

    def perplexities(self, model: PreTrainedModel) -> list[float]:
        """At each of `CONTEXT_LENGTHS`, in bf16 autocast as `bench.quality` has it."""
        with blockwise_attention(model):
            return [
                evaluate_perplexity(
                    model,
                    [self.evaluation],
                    context_length=length,
                    precision="bfloat16",
                    data_fingerprint=EVALUATION,
                ).value
                for length in CONTEXT_LENGTHS
            ]

    def _moments(self, model: PreTrainedModel, batches: Sequence[Tensor]) -> Moments:
        return measure_moments(model, batches, precision="bfloat16", gradients=True)

    def _text(self, number: int, share: float) -> list[Tensor]:
        """Batches [B, T] of the calibration text; each `number` is other text."""
        first = number * self.num_samples
        rows = self.windows[first : first + round(share * self.num_samples)]
        return list(torch.split(rows, _BATCH))


def _windows(tokenizer: PreTrainedTokenizerBase, path: Path) -> Tensor:
    """Token ids [N, T] of documents one after the other, in no order."""
    with gzip.open(path, "rt") as lines:
        texts = [json.loads(line)["text"] for line in islice(lines, _NUM_DOCUMENTS)]
    ids = list(_closed(tokenizer, texts))
    windows = torch.tensor(ids[: len(ids) // _LENGTH * _LENGTH]).view(-1, _LENGTH)
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(0))
    return windows[order]


def _closed(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Iterator[int]:
    for text in texts:
        yield from tokenizer(text, add_special_tokens=False)["input_ids"]
        yield tokenizer.eos_token_id


def _scores(model: PreTrainedModel, moments: Moments, metric: bool) -> Scores:
    constraints = Allocation().constraints
    gradients: MutableMapping[Any, Tensor] = moments.gradients
    if not metric:
        gradients = {key: torch.eye(len(gradients[key])) for key in gradients}
    return fisher_scores(
        model,
        replace(moments, gradients=gradients),
        widths=lambda axis, width: allowed_widths(axis, width, constraints),
        ridge=_RIDGE,
    )


if __name__ == "__main__":
    main()
