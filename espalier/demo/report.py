"""The before/after table, from the evaluations the server stores and the checkpoint's manifest."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from espalier.live import millions
from espalier.published import CheckpointFile, Evaluation

_BYTES_PER_PARAMETER = {"float32": 4, "bfloat16": 2, "float16": 2}


class Evaluations:
    """Looks measurements up by what they measure."""

    def __init__(self, measured: Iterable[Evaluation]) -> None:
        self._measured = tuple(measured)

    def find(self, metric: str, stage: str, increment: int | None = None) -> float | None:
        """The last value measured, or None."""
        found = [
            item.value
            for item in self._measured
            if item.metric == metric and item.stage == stage and increment in (None, item.increment)
        ]
        return found[-1] if found else None

    @property
    def increments(self) -> list[int]:
        """The increments something was measured in, ascending."""
        return sorted({item.increment for item in self._measured if item.increment > 0})


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a downloaded checkpoint."""
    manifest: dict[str, Any] = json.loads((directory / "manifest.json").read_bytes())
    return manifest


def render_report(
    manifest: dict[str, Any],
    measured: Sequence[Evaluation],
    files: Sequence[CheckpointFile],
    params_by_increment: dict[int, int],
) -> RenderableType:
    """Both tables: the model before and after, and what each increment cut and recovered."""
    evaluations = Evaluations(measured)
    return Group(
        _before_and_after(manifest, evaluations, files),
        "",
        _by_increment(manifest, evaluations, params_by_increment),
    )


def _before_and_after(
    manifest: dict[str, Any], evaluations: Evaluations, files: Sequence[CheckpointFile]
) -> Table:
    last = manifest["increment"]
    dtype = manifest["dtype"]
    base, now = manifest["base_num_parameters"], manifest["num_parameters"]
    base_bytes = base * _BYTES_PER_PARAMETER[dtype]
    weight_bytes = sum(file.size for file in files if file.path.endswith(".safetensors"))
    table = Table(title="Before and after", title_justify="left")
    for heading in ("", "dense", "cut, untrained", "after recovery", "change"):
        table.add_column(heading, justify="left" if not heading else "right")
    table.add_row("parameters", millions(base), millions(now), millions(now), _change(base, now))
    table.add_row(
        f"weights on disk, {dtype}",
        _megabytes(base_bytes),
        _megabytes(weight_bytes),
        _megabytes(weight_bytes),
        _change(base_bytes, weight_bytes),
    )
    dense = evaluations.find("perplexity", "base")
    recovered = evaluations.find("perplexity", "recovered", last)
    table.add_row(
        "perplexity on held-out text",
        _number(dense),
        _number(evaluations.find("perplexity", "pruned", last)),
        _number(recovered),
        _change(dense, recovered),
    )
    for metric, name in (
        ("prefill_tokens_per_second", "prefill, tokens/s"),
        ("decode_tokens_per_second", "decode, tokens/s"),
    ):
        before, after = evaluations.find(metric, "base"), evaluations.find(metric, "recovered")
        table.add_row(name, _number(before), "", _number(after), _change(before, after))
    return table


def _by_increment(
    manifest: dict[str, Any], evaluations: Evaluations, params_by_increment: dict[int, int]
) -> Table:
    table = Table(title="Increment by increment", title_justify="left")
    for heading in ("increment", "parameters", "cut, untrained", "after recovery"):
        table.add_column(heading, justify="right")
    table.add_row(
        "dense",
        millions(manifest["base_num_parameters"]),
        "",
        _number(evaluations.find("perplexity", "base")),
    )
    for increment in evaluations.increments:
        table.add_row(
            str(increment),
            millions(params_by_increment.get(increment)),
            _number(evaluations.find("perplexity", "pruned", increment)),
            _number(evaluations.find("perplexity", "recovered", increment)),
        )
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.2f}" if value < 1000 else f"{value:,.0f}"


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f} MB"


def _change(before: float | None, after: float | None) -> str:
    return "" if not before or after is None else f"{after / before - 1:+.1%}"
