"""The curves of jobs, as both the server and the chart library draw them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from api.dashboard.figures import Plot, Series, draw, is_logarithmic
from api.representations import QUALITY, quality_of
from registry import checkpoints, metrics
from registry.tables import Evaluation, Job, JobEvent

CURVE_POINTS = 1000
SHADES = 8
"""Colours that the style sheet has for curves."""
_STAGES = ("base", "pruned", "recovered")


@dataclass(frozen=True)
class Drawing:
    """Curves that share their axes."""

    title: str
    lines: list[Series]
    cuts: list[float]
    max_tokens: float
    level: float | None = None
    level_label: str = ""
    dots: bool = False
    stepped: bool = False

    def __bool__(self) -> bool:
        return any(self.lines)

    @property
    def plot(self) -> Plot:
        """As SVG."""
        return draw(
            self.lines,
            self.cuts,
            max_tokens=self.max_tokens,
            dots=self.dots,
            level=self.level,
            stepped=self.stepped,
        )

    @property
    def label(self) -> str:
        """What it shows, for who cannot see it."""
        now = ", ".join(
            f"{line.label or 'now'} {line.values[-1]:.4g}" for line in self.lines if line
        )
        return f"{self.title} over training tokens: {now or 'nothing yet'}"

    def as_json(self) -> dict[str, Any]:
        """What `charts.js` draws."""
        level = {"value": self.level, "label": self.level_label} if self.level else None
        return {
            "lines": [
                {"label": line.label, "x": line.tokens, "y": line.values, "shade": line.shade}
                for line in self.lines
            ],
            "logarithmic": is_logarithmic([v for line in self.lines for v in line.values]),
            "cuts": self.cuts,
            "max": self.max_tokens,
            "level": level,
            "dots": self.dots,
            "stepped": self.stepped,
        }


def drawings_of(
    session: Session, job: Job, evaluations: Sequence[Evaluation]
) -> Mapping[str, Drawing]:
    """Loss, held-out perplexity, parameters left and, where it changes, the mixture of domains."""
    steps = _events_of(session, job.id, "prune.step")
    cuts = [float(e.data["num_tokens"]) for e in steps if e.data.get("num_tokens") is not None]
    span = float(max(job.tokens_planned or 0, job.tokens_seen))
    drawn = {
        "loss": Drawing("Training loss", [loss_of(session, job)], cuts, span),
        "perplexity": Drawing(
            "Held-out perplexity",
            [perplexity_of(evaluations)],
            cuts,
            span,
            level=quality_of(evaluations, 0, "base"),
            level_label="base model",
            dots=True,
        ),
        "parameters": Drawing(
            "Parameters left",
            [_parameters(job, steps)],
            cuts,
            span,
            level=job.params_target,
            level_label="target",
            stepped=True,
        ),
    }
    mixture = _mixture(job, _events_of(session, job.id, "mixture.changed"))
    if mixture:
        drawn["mixture"] = Drawing("Domain weights, %", mixture, cuts, span, stepped=True)
    return drawn


def loss_of(session: Session, job: Job, *, label: str = "loss", shade: int = 0) -> Series:
    """Training loss, thinned for drawing."""
    columns = metrics.columns(session, job.id, ("num_tokens", "loss"), 0, CURVE_POINTS)
    return _finite(columns["num_tokens"], columns["loss"], label, shade)


def perplexity_of(
    evaluations: Sequence[Evaluation], *, label: str = "perplexity", shade: int = 0
) -> Series:
    """Held-out perplexity: of the base model, after each cut, after each recovery."""
    rows = by_quality(evaluations)
    return _finite([row.num_tokens for row in rows], [row.value for row in rows], label, shade)


def by_quality(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """The measurements of held-out perplexity, in the order of the run."""
    rows = [row for row in evaluations if (row.suite, row.metric) == QUALITY]
    return sorted(rows, key=lambda row: (row.increment, _STAGES.index(row.stage)))


def comparison_of(
    session: Session, jobs: Sequence[Job], names: Sequence[str]
) -> Mapping[str, Drawing]:
    """Loss and held-out perplexity of several jobs over each other."""
    span = float(max((max(job.tokens_planned or 0, job.tokens_seen) for job in jobs), default=0))
    losses, qualities = [], []
    for index, (job, name) in enumerate(zip(jobs, names, strict=True)):
        shade = index % SHADES
        evaluations = checkpoints.evaluations_for_job(session, job.id)
        losses.append(loss_of(session, job, label=name, shade=shade))
        qualities.append(perplexity_of(evaluations, label=name, shade=shade))
    return {
        "loss": Drawing("Training loss", losses, [], span),
        "perplexity": Drawing("Held-out perplexity", qualities, [], span, dots=True),
    }


def _parameters(job: Job, steps: Sequence[JobEvent]) -> Series:
    if job.params_start is None or not steps:
        return Series([], [])
    tokens, values = [0.0], [float(job.params_start)]
    for event in steps:
        tokens.append(float(event.data.get("num_tokens") or 0))
        values.append(float(event.data.get("num_parameters") or values[-1]))
    tokens.append(float(max(job.tokens_seen, tokens[-1])))
    values.append(values[-1])
    return Series(tokens, values, "parameters")


def _mixture(job: Job, changes: Sequence[JobEvent]) -> list[Series]:
    names = list(dict.fromkeys(name for event in changes for name in event.data["weights"]))
    last = float(job.tokens_seen)
    lines = []
    for index, name in enumerate(names):
        tokens = [float(event.data["num_tokens"]) for event in changes]
        values = [100 * float(event.data["weights"].get(name, 0.0)) for event in changes]
        lines.append(
            Series([*tokens, max(last, tokens[-1])], [*values, values[-1]], name, index % SHADES)
        )
    return lines


def _finite(
    tokens: Sequence[float], values: Sequence[float | None], label: str, shade: int
) -> Series:
    pairs = [
        (float(t), float(v))
        for t, v in zip(tokens, values, strict=True)
        if v is not None and math.isfinite(v)
    ]
    return Series([t for t, _ in pairs], [v for _, v in pairs], label, shade)


def _events_of(session: Session, job_id: str, event_type: str) -> Sequence[JobEvent]:
    query = select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.type == event_type)
    return session.scalars(query.order_by(JobEvent.seq)).all()
