"""Where a job's model stands: beside its parent, beside the cut alone, and what that came to."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from pruning.paired import PairedComparison, compare_rows, decode_rows
from registry import attempts, checkpoints
from registry.leases import held_seconds
from registry.tables import Evaluation, Job

_SAME = (
    "data",
    "context_length",
    "num_fewshot",
    "precision",
    "harness",
    "task_version",
    "join",
    "tokenizer",
)
"""What must agree in two protocols before their rows are compared."""
_OTHER_MODEL = "@"
"""Between a suite and the model it measured, where that is not the job's own."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One model of a job with what was measured of it; `increment` 0 is the parent.

    `name` is that of a model that is not the job's own, measured to compare with.
    """

    increment: int
    num_parameters: int | None
    evaluations: tuple[Evaluation, ...]
    name: str | None = None


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
    others: tuple[Standing, ...]
    device: str | None
    device_seconds: float
    num_tokens: int
    energy_joules: float | None


def place(session: Session, job: Job) -> Placement:
    """What was measured of a job's models so far."""
    measured = checkpoints.evaluations_for_job(session, job.id)
    rows = [row for row in measured if _OTHER_MODEL not in row.suite]
    sizes = {one.idx: one.params_after for one in checkpoints.increments(session, job.id)}
    newest = max(sizes, default=None)
    return Placement(
        parent=_standing(rows, "base", 0, job.params_start),
        cut=None if newest is None else _standing(rows, "pruned", newest, sizes[newest]),
        result=None if newest is None else _standing(rows, "recovered", newest, sizes[newest]),
        others=tuple(_others([row for row in measured if _OTHER_MODEL in row.suite])),
        device=(job.resolved or {}).get("device"),
        device_seconds=held_seconds(session, job.id),
        num_tokens=job.tokens_seen,
        energy_joules=attempts.energy_joules(session, job.id),
    )


def _others(rows: Sequence[Evaluation]) -> Iterator[Standing]:
    for name in dict.fromkeys(str(row.protocol.get("model")) for row in rows):
        mine = tuple(row for row in rows if row.protocol.get("model") == name)
        yield Standing(
            increment=0,
            num_parameters=mine[0].protocol.get("num_parameters"),
            evaluations=mine,
            name=name,
        )


def suite_of(row: Evaluation) -> str:
    """The suite's own name, whichever model it measured."""
    return row.suite.partition(_OTHER_MODEL)[0]


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
    before = {(suite_of(row), row.metric): row for row in first.evaluations}
    found = []
    for row in second.evaluations:
        comparison = _compare(before.get((suite_of(row), row.metric)), row)
        if comparison is not None:
            found.append(
                PairedEvaluation(suite=suite_of(row), metric=row.metric, comparison=comparison)
            )
    return found


def _compare(first: Evaluation | None, second: Evaluation) -> PairedComparison | None:
    if first is None or first.rows is None or second.rows is None:
        return None
    if any(first.protocol.get(name) != second.protocol.get(name) for name in _SAME):
        return None
    return compare_rows(decode_rows(first.rows), decode_rows(second.rows))
