"""Plots of what the benches found."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot


def plot_quality(found: Mapping[str, Any], path: Path) -> None:
    """Perplexity over the share removed, one line per preset, one panel per context length.

    A preset with changes to its recipe is in the table alone: it would have the plot to itself.
    """
    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.5), constrained_layout=True)
    presets = dict.fromkeys(row["preset"] for row in found["rows"] if "," not in row["preset"])
    for panel, length in zip(panels, found["context_lengths"], strict=True):
        for preset in presets:
            rows = [row for row in found["rows"] if row["preset"] == preset]
            removed = [0.0, *(100 * row["sparsity"] for row in rows)]
            metric = f"perplexity_{length}"
            values = [found["dense"][metric], *(row[metric] for row in rows)]
            panel.plot(removed, values, marker="o", label=preset)
        panel.set(
            yscale="log",
            xlabel="decoder parameters to remove, %",
            ylabel="perplexity",
            title=f"context {length}, no training",
        )
        panel.grid(visible=True, which="both", alpha=0.25)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def plot_recovery(found: Mapping[str, Any], path: Path) -> None:
    """Training loss over tokens, one panel per size and budget, cuts marked."""
    budgets = list(dict.fromkeys((row["sparsity"], row["tokens"]) for row in found["rows"]))
    figure, panels = pyplot.subplots(
        1, len(budgets), figsize=(7 * len(budgets), 4.5), constrained_layout=True, squeeze=False
    )
    for panel, (sparsity, tokens) in zip(panels[0], budgets, strict=True):
        for row in found["rows"]:
            if (row["sparsity"], row["tokens"]) == (sparsity, tokens):
                _plot_losses(panel, row)
        panel.set(
            xlabel="training tokens",
            ylabel="loss, nats per token (mean over 10 steps)",
            title=f"{sparsity:.0%} removed, {tokens:,} tokens",
        )
        panel.grid(visible=True, alpha=0.25)
        panel.legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _plot_losses(panel: Any, row: Mapping[str, Any]) -> None:
    """One run: its losses smoothed within increments, a triangle at each cut."""
    tokens = [at for at, _ in row["losses"]]
    losses = [loss for _, loss in row["losses"]]
    smooth = [
        sum(losses[max(0, i - 9) : i + 1]) / len(losses[max(0, i - 9) : i + 1])
        for i in range(len(losses))
    ]
    (line,) = panel.plot(tokens, smooth, label=f"{row['variant']}: {row['perplexity']:.1f}")
    panel.plot(
        row["cuts"],
        [smooth[0] for _ in row["cuts"]],
        linestyle="",
        marker="v",
        color=line.get_color(),
    )


def plot_frontier(found: Mapping[str, Any], path: Path) -> None:
    """Perplexity over size for every checkpoint of a registry, the frontier as a line."""
    trained = {job["job"]: job["trained"] for job in found["jobs"]}
    points = sorted(found["frontier"], key=lambda point: point["params"])
    best = [point for point in points if point["on_frontier"]]
    figure, panel = pyplot.subplots(figsize=(7, 4.5), constrained_layout=True)
    for label, kind, marker in (("with recovery", True, "o"), ("cut alone", False, "x")):
        shown = [point for point in points if trained[point["job"]] is kind]
        sizes = [point["params"] / 1e6 for point in shown]
        ratios = [point["baseline_ratio"] for point in shown]
        panel.plot(sizes, ratios, marker, label=label)
    line = ([p["params"] / 1e6 for p in best], [p["baseline_ratio"] for p in best])
    panel.plot(*line, "-", linewidth=1, alpha=0.6, label="frontier")
    panel.axhline(1.0, linewidth=1, linestyle=":", label="base model")
    panel.set(
        xlabel="parameters, millions",
        ylabel="held-out perplexity over the base model's",
        title="Every checkpoint of one registry",
    )
    panel.grid(visible=True, alpha=0.25)
    panel.legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
