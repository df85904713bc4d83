"""Plots of what the benches found."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot


def plot_quality(found: Mapping[str, Any], path: Path) -> None:
    """Perplexity over the share removed, one line per preset, one panel per context length."""
    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4), constrained_layout=True)
    for panel, length, dense in zip(panels, found["context_lengths"], found["dense"], strict=True):
        for preset in dict.fromkeys(row["preset"] for row in found["rows"]):
            rows = [row for row in found["rows"] if row["preset"] == preset]
            removed = [0.0, *(100 * row["removed"] for row in rows)]
            values = [dense, *(row[f"perplexity_{length}"] for row in rows)]
            panel.plot(removed, values, marker="o", label=preset)
        panel.set(
            yscale="log",
            xlabel="decoder parameters removed, %",
            ylabel="perplexity",
            title=f"context {length}, no training",
        )
        panel.grid(visible=True, which="both", alpha=0.25)
    panels[0].legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
