"""What `bench.quality` finds of each pruned model, and what it is held against."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.figures import Figure

CONTEXT_LENGTHS = (2048, 128)

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


@dataclass(frozen=True, kw_only=True)
class Row:
    """One pruned model; accuracy is None where no task was asked for."""

    preset: str
    sparsity: float
    removed: float
    num_parameters: int
    base_bytes: int
    perplexity_2048: float
    perplexity_128: float
    accuracy: float | None
    accuracy_stderr: float | None
    cpu_seconds: float
    peak_bytes: int

    @property
    def method(self) -> str:
        """The preset without the changes made to it."""
        return self.preset.split(",")[0]


def verdicts_on(rows: Sequence[Row]) -> Iterator[Figure]:
    """The default against its bars and the other presets, each of those against its own code."""
    for row in rows:
        yield from _perplexities(row)
        yield from _accuracies(row, rows)
        if row.method == "espalier" and math.isclose(row.sparsity, 0.2):
            yield from _costs(row)


def _perplexities(row: Row) -> Iterator[Figure]:
    bars = BARS if row.method == "espalier" else PEERS.get(row.method, {})
    if row.sparsity in bars:
        figures = (row.perplexity_2048, row.perplexity_128)
        for length, figure, bar in zip(CONTEXT_LENGTHS, figures, bars[row.sparsity], strict=True):
            what = f"{row.preset} {row.sparsity:.0%} perplexity at {length}"
            yield Figure(what=what, figure=figure, bar=bar)


def _accuracies(row: Row, rows: Sequence[Row]) -> Iterator[Figure]:
    if row.accuracy is None:
        return
    what = f"{row.preset} {row.sparsity:.0%} accuracy"
    default = row.method == "espalier"
    bars = MIN_ACCURACY if default else PEERS_ACCURACY.get(row.method, {})
    if row.sparsity in bars:
        yield Figure(what=what, figure=row.accuracy, bar=bars[row.sparsity], at_least=True)
    others = [
        (other.accuracy - (other.accuracy_stderr or 0.0), other.preset)
        for other in rows
        if other.sparsity == row.sparsity and other.method != "espalier" and other.accuracy
    ]
    if default and others:
        bar, best = max(others)
        what = f"{what}, {best} less a standard error"
        yield Figure(what=what, figure=row.accuracy, bar=bar, at_least=True)


def _costs(row: Row) -> Iterator[Figure]:
    yield Figure(what=f"{row.preset} CPU seconds", figure=row.cpu_seconds, bar=MAX_CPU_SECONDS)
    bar = MAX_MODEL_SIZES * row.base_bytes / 1e6
    yield Figure(what=f"{row.preset} peak MB", figure=row.peak_bytes / 1e6, bar=bar)


def line_of(row: Row) -> str:
    """A row as it is printed."""
    return (
        f"{row.preset:40s} {row.sparsity:4.0%} removed {row.removed:6.2%}"
        f"  {figures_of(asdict(row))}"
        f"  {row.cpu_seconds:6.0f} CPU s  {row.peak_bytes / 1e9:5.2f} GB"
    )


def figures_of(quality: Mapping[str, Any]) -> str:
    """Perplexities and accuracy, of a pruned model or the dense one."""
    text = f"ppl {quality['perplexity_2048']:9.2f} / {quality['perplexity_128']:9.2f}"
    if quality["accuracy"] is None:
        return text
    return f"{text}  acc {quality['accuracy']:5.1f} ± {quality['accuracy_stderr']:.1f}"
