"""What the job page shows, gathered by the same registry functions as the JSON routes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from api.dashboard.figures import Heatmap, Plot, Series, draw, heatmap, is_logarithmic
from api.representations import (
    QUALITY,
    quality_of,
    read_checkpoint,
    read_event,
    read_job,
    read_widths,
)
from api.schemas.checkpoints import CheckpointRead
from api.schemas.jobs import JobRead
from api.schemas.progress import EventRead, WidthsRead
from registry import checkpoints, jobs, metrics
from registry.jobs import EVENT_TYPES
from registry.status import TERMINAL
from registry.tables import Evaluation, Job, JobEvent

CURVE_POINTS = 1000
SHOWN_EVENTS = 60
STREAM_EVENTS = (
    *EVENT_TYPES.values(),
    *("job.created", "job.validated", "job.resumed", "job.retrying", "phase.changed"),
    *("increment.started", "prune.step", "eval.completed", "checkpoint.created"),
    *("metrics", "warning", "bye"),
)


@dataclass(frozen=True)
class Curves:
    """Loss and held-out perplexity over training tokens, and where the cuts were."""

    loss: Series
    perplexity: Series
    cuts: list[float]
    base_perplexity: float | None
    max_tokens: float

    def as_json(self) -> dict[str, Any]:
        """What the chart library draws."""
        return {
            "loss": {"x": self.loss.tokens, "y": self.loss.values},
            "perplexity": {
                "x": self.perplexity.tokens,
                "y": self.perplexity.values,
                "logarithmic": is_logarithmic(self.perplexity.values),
            },
            "cuts": self.cuts,
            "base_perplexity": self.base_perplexity,
            "max_tokens": self.max_tokens,
        }


@dataclass(frozen=True)
class Comparison:
    """One line of the before/after table; `change` is relative to the base model."""

    label: str
    kind: str
    base: float | None
    cut: float | None
    recovered: float | None
    less_is_better: bool

    @property
    def change(self) -> float | None:
        if not self.base or self.recovered is None:
            return None
        return self.recovered / self.base - 1


@dataclass(frozen=True)
class JobView:
    """Everything of one job."""

    job: JobRead
    active: bool
    perplexity: float | None
    perplexity_stage: str | None
    base_perplexity: float | None
    loss: float | None
    loss_plot: Plot
    perplexity_plot: Plot
    heatmaps: list[Heatmap]
    widths: WidthsRead
    comparison: list[Comparison]
    checkpoints: list[CheckpointRead]
    events: list[EventRead]
    stream_events: str = " ".join(STREAM_EVENTS)


def view_job(session: Session, tenant_id: str, job_id: str) -> JobView:
    """The page of a job as it is now.

    Raises:
        NotFound: there is none, or it is another tenant's.
    """
    job = jobs.get(session, tenant_id, job_id)
    evaluations = checkpoints.evaluations_for_job(session, job_id)
    quality = _by_quality(evaluations)
    curves = curves_of(session, job, evaluations)
    widths = read_widths(job, checkpoints.increments(session, job_id))
    published = [
        read_checkpoint(row, checkpoints.files(session, row.id), evaluations)
        for row in checkpoints.list_for_job(session, job_id)
    ]
    span = curves.max_tokens
    return JobView(
        job=read_job(session, job),
        active=job.status not in TERMINAL,
        perplexity=curves.perplexity.values[-1] if curves.perplexity else None,
        perplexity_stage=quality[-1].stage if quality else None,
        base_perplexity=curves.base_perplexity,
        loss=curves.loss.values[-1] if curves.loss else None,
        loss_plot=draw(curves.loss, curves.cuts, max_tokens=span),
        perplexity_plot=draw(
            curves.perplexity,
            curves.cuts,
            max_tokens=span,
            dots=True,
            base=curves.base_perplexity,
        ),
        heatmaps=_heatmaps(widths),
        widths=widths,
        comparison=_comparison(job, evaluations, published),
        checkpoints=list(reversed(published)),
        events=_newest_events(session, job_id),
    )


def curves_of(session: Session, job: Job, evaluations: Sequence[Evaluation]) -> Curves:
    """The job's curves, thinned for drawing."""
    columns = metrics.columns(session, job.id, ("num_tokens", "loss"), 0, CURVE_POINTS)
    quality = _by_quality(evaluations)
    cuts = [
        float(event.data["num_tokens"])
        for event in _events_of(session, job.id, "prune.step")
        if event.data.get("num_tokens") is not None
    ]
    return Curves(
        loss=_finite_series(columns["num_tokens"], columns["loss"]),
        perplexity=_finite_series(
            [row.num_tokens for row in quality], [row.value for row in quality]
        ),
        cuts=cuts,
        base_perplexity=quality_of(evaluations, 0, "base"),
        max_tokens=float(max(job.tokens_planned or 0, job.tokens_seen)),
    )


_STAGES = ("base", "pruned", "recovered")


def _by_quality(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    rows = [row for row in evaluations if (row.suite, row.metric) == QUALITY]
    return sorted(rows, key=lambda row: (row.increment, _STAGES.index(row.stage)))


def _finite_series(tokens: Sequence[float], values: Sequence[float | None]) -> Series:
    pairs = [
        (float(t), float(v))
        for t, v in zip(tokens, values, strict=True)
        if v is not None and math.isfinite(v)
    ]
    return Series([t for t, _ in pairs], [v for _, v in pairs])


def _events_of(session: Session, job_id: str, event_type: str) -> Sequence[JobEvent]:
    query = select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.type == event_type)
    return session.scalars(query.order_by(JobEvent.seq)).all()


def _newest_events(session: Session, job_id: str) -> list[EventRead]:
    query = select(JobEvent).where(JobEvent.job_id == job_id).order_by(JobEvent.seq.desc())
    return [read_event(row) for row in session.scalars(query.limit(SHOWN_EVENTS))]


def _heatmaps(widths: WidthsRead) -> list[Heatmap]:
    axes = (
        ("Intermediate size", "channels", "intermediate_size"),
        ("Key/value heads", "heads", "num_key_value_heads"),
    )
    drawn = (
        heatmap(
            title,
            unit,
            widths.increments,
            [[getattr(layer, name) for layer in row] for row in widths.layers],
        )
        for title, unit, name in axes
    )
    return [one for one in drawn if one is not None]


def _comparison(
    job: Job, evaluations: Sequence[Evaluation], published: Sequence[CheckpointRead]
) -> list[Comparison]:
    """Base model, the last recovered increment before its training, and after; as measured."""
    last = max((row.increment for row in evaluations if row.stage == "recovered"), default=0)
    left = next((row.params for row in published if row.increment == last), None)
    rows = [Comparison("Parameters", "count", job.params_start, left, left, True)]
    measured = dict.fromkeys((row.suite, row.metric) for row in evaluations)
    for suite, metric in measured:
        values = {
            (row.increment, row.stage): row.value
            for row in evaluations
            if (row.suite, row.metric) == (suite, metric)
        }
        rows.append(
            Comparison(
                label=_LABELS.get(metric, f"{suite}: {metric.replace('_', ' ')}"),
                kind="decimal",
                base=values.get((0, "base")),
                cut=values.get((last, "pruned")),
                recovered=values.get((last, "recovered")),
                less_is_better=suite == "perplexity",
            )
        )
    return rows


_LABELS = {
    "perplexity": "Held-out perplexity",
    "prefill_tokens_per_second": "Prefill, tokens per second",
    "decode_tokens_per_second": "Decode, tokens per second",
}
