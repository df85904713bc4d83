"""The table of the bench of recovery: its rows, the bars they are held to, and where it is kept."""

import fcntl
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.figures import Figure

MAX_RATIO_TO_OFFICIAL = 0.85
MAX_RATIO_TO_DENSE = 1.15
TOKENS_TO_DENSE = 1_000_000
OFFICIAL = ("official", "official_fast")


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
    phase_seconds: Mapping[str, float]
    load_average: float
    threads: int
    losses: list[tuple[int, float]]
    cuts: list[int]

    @property
    def accuracy(self) -> float | None:
        """The mean over the suites."""
        values = [value for value, _ in self.suites.values()]
        return sum(values) / len(values) if values else None

    @property
    def accuracy_stderr(self) -> float:
        """Of that mean."""
        variances = [(stderr or 0.0) ** 2 for _, stderr in self.suites.values()]
        return float(sum(variances) ** 0.5 / max(1, len(variances)))

    @property
    def key(self) -> tuple[str, float, int]:
        """What makes two rows the same run."""
        return (self.variant, self.sparsity, self.tokens)


def update(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    """Change the table at `path` while no other process does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        found = change(json.loads(file.read() or '{"rows": []}'))
        file.truncate(0)
        file.write(json.dumps(found, indent=1) + "\n")
    return found


def merged(found: Mapping[str, Any], row: Row) -> list[Row]:
    """The rows found so far, with this one in place of an older one of the same run."""
    rows = [Row(**fields) for fields in found["rows"]]
    return [*(other for other in rows if other.key != row.key), row]


def bars_of(rows: list[Row], dense: float | None) -> Iterator[Figure]:
    """The default against the best of the official recipe, wherever both were run alike."""
    for sparsity, tokens in dict.fromkeys((row.sparsity, row.tokens) for row in rows):
        alike = [row for row in rows if (row.sparsity, row.tokens) == (sparsity, tokens)]
        ours = [row for row in alike if row.variant.startswith("default-")]
        official = [row for row in alike if row.variant.split("-")[0] in OFFICIAL]
        what = f"at {sparsity:.0%} after {tokens:,} tokens"
        if ours and official:
            best, theirs = _best(ours), _best(official)
            ratio = best.perplexity / theirs.perplexity
            yield Figure(
                what=f"default / {theirs.variant} {what}", figure=ratio, bar=MAX_RATIO_TO_OFFICIAL
            )
            if best.accuracy is not None and theirs.accuracy is not None:
                lost = theirs.accuracy - best.accuracy
                yield Figure(what=f"accuracy lost to it {what}", figure=lost, bar=0.0)
        if ours and dense and tokens >= TOKENS_TO_DENSE and sparsity <= 0.2:
            ratio = _best(ours).perplexity / dense
            yield Figure(what=f"default / dense {what}", figure=ratio, bar=MAX_RATIO_TO_DENSE)


def _best(rows: list[Row]) -> Row:
    return min(rows, key=lambda row: row.perplexity)


def with_bars(found: Mapping[str, Any], rows: list[Row]) -> dict[str, Any]:
    """The table with these rows and what the bars say of them."""
    bars = [bar.as_json() for bar in bars_of(rows, found.get("dense"))]
    return {**found, "rows": [asdict(row) for row in rows], "bars": bars}


def line_of(row: Row) -> str:
    """A row of the printed table."""
    training = row.phase_seconds.get("training", 0.0) or float("nan")
    shares = ", ".join(
        f"{name} {row.phase_seconds.get(name, 0.0) / training:.0%}"
        for name in ("calibrating", "pruning", "evaluating", "exporting")
    )
    accuracy = row.accuracy
    scored = "" if accuracy is None else f"  accuracy {accuracy:.3f} ± {row.accuracy_stderr:.3f}"
    return (
        f"{row.variant:22s} {row.sparsity:4.0%} {row.tokens:9,} tokens  ppl {row.perplexity:8.2f}"
        f"  held out {row.pruned_perplexity:8.2f} → {row.held_out_perplexity:8.2f}"
        f"{scored}  beside {training:.0f} s of training: {shares}"
    )
