"""Where a job's model stands: beside its parent, beside the cut alone, and what that came to."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from pruning.paired import PairedComparison, compare_rows, decode_rows
from registry import checkpoints
from registry.leases import held_seconds
from registry.tables import Evaluation, Job

_SAME = ("data", "context_length", "num_fewshot", "precision", "harness", "task_version", "join")
"""What must agree in two protocols before their rows are compared."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One model of a job with what was measured of it; `increment` 0 is the parent."""

    increment: int
    num_parameters: int | None
    evaluations: tuple[Evaluation, ...]


@dataclass(frozen=True, kw_only=True)
class PairedEvaluation:
    """A metric of two models on the same rows, second minus first."""

    suite: str
    metric: str
    comparison: PairedComparison


@dataclass(frozen=True, kw_only=True)
class Placement:
    """The parent, the newest cut before and after recovery (None: not yet), and the cost."""

    parent: Standing
    cut: Standing | None
    result: Standing | None
    device: str | None
    device_seconds: float
    num_tokens: int


def place(session: Session, job: Job) -> Placement:
    """What was measured of a job's models so far."""
    rows = checkpoints.evaluations_for_job(session, job.id)
    sizes = {one.idx: one.params_after for one in checkpoints.increments(session, job.id)}
    newest = max(sizes, default=None)
    return Placement(
        parent=_standing(rows, "base", 0, job.params_start),
        cut=None if newest is None else _standing(rows, "pruned", newest, sizes[newest]),
        result=None if newest is None else _standing(rows, "recovered", newest, sizes[newest]),
        device=(job.resolved or {}).get("device"),
        device_seconds=held_seconds(session, job.id),
        num_tokens=job.tokens_seen,
    )


def _standing(
    rows: Sequence[Evaluation], stage: str, increment: int, num_parameters: int | None
) -> Standing:
    return Standing(
        increment=increment,
        num_parameters=num_parameters,
        evaluations=tuple(r for r in rows if (r.stage, r.increment) == (stage, increment)),
    )


def compare(first: Standing, second: Standing) -> list[PairedEvaluation]:
    """The metrics that both were measured by on the same rows, in the order of the second."""
    before = {(row.suite, row.metric): row for row in first.evaluations}
    found = []
    for row in second.evaluations:
        comparison = _compare(before.get((row.suite, row.metric)), row)
        if comparison is not None:
            found.append(
                PairedEvaluation(suite=row.suite, metric=row.metric, comparison=comparison)
            )
    return found


def _compare(first: Evaluation | None, second: Evaluation) -> PairedComparison | None:
    if first is None or first.rows is None or second.rows is None:
        return None
    if any(first.protocol.get(name) != second.protocol.get(name) for name in _SAME):
        return None
    return compare_rows(decode_rows(first.rows), decode_rows(second.rows))
