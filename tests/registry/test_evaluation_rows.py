"""Outcomes of rows are kept beside their number, and out of the event log."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from pruning.events import EvaluationFinished, EvaluationStage
from pruning.paired import encode_rows
from registry import checkpoints, placement, progress
from registry.tables import Job, JobEvent
from tests.registry.conftest import MakeJob, take


def evaluation(rows: list[float], stage: EvaluationStage = "base") -> EvaluationFinished:
    return EvaluationFinished(
        increment=0 if stage == "base" else 1,
        stage=stage,
        num_tokens=0,
        suite="arc_easy",
        metric="acc",
        value=sum(rows) / len(rows),
        num_samples=len(rows),
        protocol={"data": "d"},
        rows=encode_rows(rows),
    )


def test_all_rows_replace_the_first_look(session: Session, make_job: MakeJob) -> None:
    job = make_job()
    lease = take(session, job)
    progress.record_evaluation(session, lease, evaluation([1.0, 1.0]))
    progress.record_evaluation(session, lease, evaluation([1.0, 1.0, 0.0, 0.0]))
    (row,) = checkpoints.evaluations_for_job(session, job.id)
    assert (row.value, row.num_samples) == (0.5, 4)
    assert row.rows == encode_rows([1.0, 1.0, 0.0, 0.0])


def test_the_event_log_does_not_carry_rows(session: Session, make_job: MakeJob) -> None:
    job = make_job()
    progress.record_evaluation(session, take(session, job), evaluation([1.0, 0.0]))
    query = select(JobEvent).filter_by(job_id=job.id, type="eval.completed")
    (event,) = session.scalars(query)
    assert event.data["value"] == 0.5
    assert "rows" not in event.data


def test_before_the_first_commit_there_is_only_the_parent(
    session: Session, make_job: MakeJob
) -> None:
    job: Job = make_job()
    progress.record_evaluation(session, take(session, job), evaluation([1.0, 0.0]))
    placed = placement.place(session, job)
    assert [row.value for row in placed.parent.evaluations] == [0.5]
    assert (placed.cut, placed.result) == (None, None)
