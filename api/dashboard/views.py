"""What the job page shows, gathered by the same registry functions as the JSON routes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from api.dashboard.curves import Drawing, by_quality, drawings_of
from api.dashboard.figures import Heatmap, heatmap
from api.job_representations import read_job
from api.representations import read_checkpoint, read_event, read_widths
from api.schemas.checkpoints import CheckpointRead, FileRead
from api.schemas.jobs import JobRead
from api.schemas.progress import EventRead, WidthsRead
from registry import checkpoints, jobs
from registry.jobs import EVENT_TYPES
from registry.status import TERMINAL
from registry.tables import Evaluation, Job, JobEvent

SHOWN_EVENTS = 12
STREAM_EVENTS = (
    *EVENT_TYPES.values(),
    *("job.created", "job.validated", "job.resumed", "job.retrying", "phase.changed"),
    *("increment.started", "prune.step", "eval.completed", "checkpoint.created"),
    *("mixture.changed", "metrics", "warning", "bye"),
)
_EXPORTS = "exports/"
_TRAINING_STATE = "training_state/"


@dataclass(frozen=True)
class Head:
    """What stands above every page of a job."""

    job: JobRead
    active: bool
    last_seq: int
    stream_events: str = " ".join(STREAM_EVENTS)


def view_head(session: Session, job: Job) -> Head:
    """The head of a job's pages."""
    return Head(
        job=read_job(session, job), active=job.status not in TERMINAL, last_seq=job.last_event_seq
    )


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
class Published:
    """A checkpoint, its files by what they are for."""

    read: CheckpointRead
    model_files: list[FileRead]
    exports: Mapping[str, list[FileRead]]


@dataclass(frozen=True)
class JobView:
    """How far a job is and what it has made."""

    head: Head
    perplexity: float | None
    perplexity_stage: str | None
    base_perplexity: float | None
    loss: float | None
    drawings: Mapping[str, Drawing]
    heatmaps: Mapping[str, Heatmap]
    widths: WidthsRead
    comparison: list[Comparison]
    checkpoints: list[Published]
    events: list[EventRead]

    @property
    def job(self) -> JobRead:
        return self.head.job

    @property
    def compared(self) -> bool:
        """Whether anything was measured after a cut."""
        return any(row.cut is not None or row.recovered is not None for row in self.comparison)


def view_job(session: Session, tenant_id: str, job_id: str) -> JobView:
    """The page of a job as it is now.

    Raises:
        NotFound: there is none, or it is another tenant's.
    """
    job = jobs.get(session, tenant_id, job_id)
    evaluations = checkpoints.evaluations_for_job(session, job_id)
    quality = by_quality(evaluations)
    drawings = drawings_of(session, job, evaluations)
    loss, perplexity = drawings["loss"].lines[0], drawings["perplexity"].lines[0]
    widths = read_widths(job, checkpoints.increments(session, job_id))
    published = _published(session, job_id, evaluations)
    return JobView(
        head=view_head(session, job),
        perplexity=perplexity.values[-1] if perplexity else None,
        perplexity_stage=quality[-1].stage if quality else None,
        base_perplexity=drawings["perplexity"].level,
        loss=loss.values[-1] if loss else None,
        drawings=drawings,
        heatmaps=heatmaps_of(widths),
        widths=widths,
        comparison=compare_stages(job, evaluations, published),
        checkpoints=published,
        events=newest_events(session, job_id, SHOWN_EVENTS),
    )


def _published(session: Session, job_id: str, evaluations: Sequence[Evaluation]) -> list[Published]:
    rows = checkpoints.list_for_job(session, job_id)
    return [
        _by_purpose(read_checkpoint(row, checkpoints.files(session, row.id), evaluations))
        for row in reversed(rows)
    ]


def _by_purpose(read: CheckpointRead) -> Published:
    exports: dict[str, list[FileRead]] = {}
    for file in read.files:
        if file.path.startswith(_EXPORTS):
            exports.setdefault(file.path.split("/")[1], []).append(file)
    apart = (_EXPORTS, _TRAINING_STATE)
    model = [file for file in read.files if not file.path.startswith(apart)]
    return Published(read=read, model_files=model, exports=exports)


def newest_events(session: Session, job_id: str, limit: int) -> list[EventRead]:
    """The last events, newest first."""
    query = select(JobEvent).where(JobEvent.job_id == job_id).order_by(JobEvent.seq.desc())
    return [read_event(row) for row in session.scalars(query.limit(limit))]


_AXES = {
    "intermediate_size": ("Intermediate size", "channels"),
    "num_key_value_heads": ("Key/value heads", "heads"),
    "num_attention_heads": ("Attention heads", "heads"),
}


def heatmaps_of(widths: WidthsRead) -> dict[str, Heatmap]:
    """The widths by axis; attention heads only where they do not follow from the other heads."""
    drawn = {}
    for name, (title, unit) in _AXES.items():
        rows = [[getattr(layer, name) for layer in row] for row in widths.layers]
        found = heatmap(title, unit, widths.increments, rows)
        if found is not None:
            drawn[name] = found
    queries, groups = drawn.get("num_attention_heads"), drawn.get("num_key_value_heads")
    if queries is not None and groups is not None and _follow(queries.widths, groups.widths):
        del drawn["num_attention_heads"]
    return drawn


def _follow(queries: Sequence[Sequence[int]], groups: Sequence[Sequence[int]]) -> bool:
    base = [q / g if g else 0 for q, g in zip(queries[0], groups[0], strict=True)]
    return all(
        query == round(group * ratio)
        for line, heads in zip(queries, groups, strict=True)
        for query, group, ratio in zip(line, heads, base, strict=True)
    )


def compare_stages(
    job: Job, evaluations: Sequence[Evaluation], published: Sequence[Published]
) -> list[Comparison]:
    """Base model, the last recovered increment before its training, and after; as measured."""
    last = max((row.increment for row in evaluations if row.stage == "recovered"), default=0)
    left = next((one.read.params for one in published if one.read.increment == last), None)
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
                label=label_of(suite, metric),
                kind="decimal",
                base=values.get((0, "base")),
                cut=values.get((last, "pruned")),
                recovered=values.get((last, "recovered")),
                less_is_better=suite == "perplexity",
            )
        )
    return rows


def label_of(suite: str, metric: str) -> str:
    """A measurement's name for people."""
    return _LABELS.get(metric, f"{suite}: {metric.replace('_', ' ')}")


_LABELS = {
    "perplexity": "Held-out perplexity",
    "prefill_tokens_per_second": "Prefill, tokens per second",
    "decode_tokens_per_second": "Decode, tokens per second",
}
