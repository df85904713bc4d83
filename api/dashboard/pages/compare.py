"""Jobs side by side: curves, measurements with their differences, recipes, widths."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from sqlalchemy.orm import Session

from api.dashboard.curves import SHADES, comparison_of
from api.dashboard.viewing import Viewer, show
from api.dashboard.views import heatmaps_of, label_of
from api.deps import Principal, ReadSession
from api.job_representations import read_job
from api.representations import read_widths
from api.schemas.jobs import JobRead
from pruning.paired import PairedComparison
from registry import checkpoints, comparisons, job_rows, jobs, placement
from registry.placement import Standing
from registry.tables import Job

router = APIRouter(prefix="/compare")

MAX_JOBS = 8
OFFERED = 30

Ids = Annotated[Sequence[str], Query(alias="job", max_length=MAX_JOBS)]


@dataclass(frozen=True)
class Value:
    """A number of one job beside that of the first."""

    value: float | None
    change: float | None
    paired: PairedComparison | None

    @property
    def significant(self) -> bool:
        return self.paired is not None and self.paired.p_value < 0.05


@dataclass(frozen=True)
class MetricRow:
    """One measurement of every job."""

    label: str
    kind: Literal["count", "seconds", "figure"]
    less_is_better: bool | None
    values: list[Value]


@router.get("")
def compare_page(request: Request, who: Viewer, session: ReadSession, ids: Ids = ()) -> Response:
    """The jobs named in the URL; without any, jobs to choose from."""
    rows = _rows(session, who, ids)
    if len(rows) < 2:
        page = job_rows.list_page(session, who.tenant_id, limit=OFFERED)
        offered = [read_job(session, row) for row in page.items]
        chosen = {row.id for row in rows}
        return show(request, "compare_choice.html", {"offered": offered, "chosen": chosen})
    reads = [read_job(session, row) for row in rows]
    context = {
        "jobs": list(zip(reads, [i % SHADES for i in range(len(reads))], strict=True)),
        "names": names_of(reads),
        "drawings": comparison_of(session, rows, names_of(reads)),
        "metrics": metric_rows(session, rows),
        "differences": comparisons.differences([row.recipe for row in rows]),
        "widths": [heatmaps_of(_widths(session, row)) for row in rows],
        "query": urlencode([("job", row.id) for row in rows]),
    }
    return show(request, "compare.html", context)


@router.get("/curves")
def compare_curves(who: Viewer, session: ReadSession, ids: Ids = ()) -> Response:
    """What the browser draws."""
    rows = _rows(session, who, ids)
    names = names_of([read_job(session, row) for row in rows])
    drawn = comparison_of(session, rows, names)
    return JSONResponse(
        {name: drawing.as_json() for name, drawing in drawn.items()},
        headers={"Cache-Control": "no-store"},
    )


def _rows(session: Session, who: Principal, ids: Sequence[str]) -> list[Job]:
    return [jobs.get(session, who.tenant_id, job_id) for job_id in dict.fromkeys(ids)]


def _widths(session: Session, row: Job) -> Any:
    return read_widths(row, checkpoints.increments(session, row.id))


def names_of(reads: Sequence[JobRead]) -> list[str]:
    """A name for each job that no other here has."""
    plain = [read.name or f"{read.id[:8]}…{read.id[-4:]}" for read in reads]
    return [
        name if plain.count(name) == 1 else f"{name} …{read.id[-4:]}"
        for name, read in zip(plain, reads, strict=True)
    ]


def metric_rows(session: Session, rows: Sequence[Job]) -> list[MetricRow]:
    """What was measured last of each job, after recovery, with differences from the first."""
    placed = [placement.place(session, row) for row in rows]
    found = [_by_metric(one.result) for one in placed]
    chance = [_chance(placed[0].result, one.result) for one in placed]
    table = [
        _row("Parameters", [row.params_now for row in rows], "count", less=True),
        _row("Training tokens", [row.tokens_seen for row in rows], "count", less=None),
        _row("Time on workers", [one.device_seconds for one in placed], "seconds", less=True),
    ]
    for suite, metric in dict.fromkeys(key for one in found for key in one):
        values = [one.get((suite, metric)) for one in found]
        less = metric.startswith("perplexity") or suite == "domains"
        paired = [one.get((suite, metric)) for one in chance]
        table.append(_row(label_of(suite, metric), values, "figure", less=less, paired=paired))
    return table


def _by_metric(standing: Standing | None) -> dict[tuple[str, str], float | None]:
    rows = standing.evaluations if standing is not None else ()
    return {(row.suite, row.metric): row.value for row in rows}


def _chance(
    first: Standing | None, second: Standing | None
) -> dict[tuple[str, str], PairedComparison]:
    """Where both were measured on the same rows, whether the difference may be chance."""
    if first is None or second is None or first is second:
        return {}
    found = placement.compare(first, second)
    return {(pair.suite, pair.metric): pair.comparison for pair in found}


def _row(
    label: str,
    values: Sequence[float | None],
    kind: Literal["count", "seconds", "figure"],
    *,
    less: bool | None,
    paired: Sequence[PairedComparison | None] = (),
) -> MetricRow:
    first = values[0]
    return MetricRow(
        label=label,
        kind=kind,
        less_is_better=less,
        values=[
            Value(
                value=value,
                change=value / first - 1 if index and first and value is not None else None,
                paired=paired[index] if paired else None,
            )
            for index, value in enumerate(values)
        ],
    )
