"""What a job keeps of its checkpoints: weights by `output.keep`, training state while needed.

Only rows go here; their blobs are nobody's afterwards and `registry.garbage` takes them. The
manifest of a checkpoint always stays: it is small, and the line of descent runs through it.
"""

from collections.abc import Collection, Mapping, Sequence

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from pruning.manifest import MANIFEST_NAME, TRAINING_STATE
from pruning.recipe_parts.output import Keep, Output
from registry import checkpoints
from registry.status import JobStatus
from registry.tables import Checkpoint, CheckpointFile, Evaluation, Job

BATCH = 100


def apply(session: Session, job: Job) -> None:
    """Drop what the job's checkpoints no longer need; pinned ones lose nothing."""
    kept = [c for c in checkpoints.list_for_job(session, job.id) if c.status == "committed"]
    resumable = _resumable_from(job, kept)
    keep = _keep(job)
    worth_keeping = _worth_keeping(session, job, kept, keep)
    for checkpoint in kept:
        if checkpoint.pinned or checkpoint.id in resumable:
            continue
        if checkpoint.id not in worth_keeping:
            _drop_weights(session, checkpoint)
        elif keep != "all" and checkpoint.resumable:
            _drop_training_state(session, checkpoint)


def apply_to_deleted(session: Session) -> int:
    """Drop the checkpoints of jobs that were deleted; how many."""
    query = (
        select(Checkpoint)
        .join(Job, Job.id == Checkpoint.job_id)
        .where(
            Job.deleted_at.is_not(None),
            Checkpoint.status == "committed",
            Checkpoint.pinned.is_(False),
        )
        .limit(BATCH)
    )
    dropped = list(session.scalars(query))
    for checkpoint in dropped:
        _drop_weights(session, checkpoint)
    return len(dropped)


def frontier(points: Mapping[str, tuple[int, float]]) -> frozenset[str]:
    """Which of the (size, loss) points no other beats in both; lower is better. Pure."""
    return frozenset(
        name
        for name, point in points.items()
        if not any(_dominates(other, point) for other in points.values())
    )


def _dominates(one: tuple[int, float], other: tuple[int, float]) -> bool:
    return one[0] <= other[0] and one[1] <= other[1] and one != other


def _keep(job: Job) -> Keep:
    return Output.model_validate(job.recipe.get("output") or {}).keep


def _resumable_from(job: Job, kept: Sequence[Checkpoint]) -> frozenset[str]:
    """The head and the one before it, as long as anything may still run from them.

    A failed or cancelled job may be retried; of a deleted or a successful one nothing runs again.
    """
    if job.status is JobStatus.SUCCEEDED or job.deleted_at is not None:
        return frozenset()
    parents = {c.id: c.parent_id for c in kept}
    head = job.head_checkpoint_id
    return frozenset(c for c in (head, parents.get(head or "")) if c is not None)


def _worth_keeping(
    session: Session, job: Job, kept: Sequence[Checkpoint], keep: Keep
) -> Collection[str]:
    if keep == "all":
        return {c.id for c in kept}
    if keep == "final":
        return {c.id for c in kept if c.id == job.head_checkpoint_id}
    measured = _perplexities(session, job)
    points = {c.id: (c.params, measured[c.id]) for c in kept if c.id in measured}
    unmeasured = {c.id for c in kept if c.id not in measured}
    return frontier(points) | unmeasured | {job.head_checkpoint_id or ""}


def _perplexities(session: Session, job: Job) -> dict[str, float]:
    query = select(Evaluation.checkpoint_id, Evaluation.value).where(
        Evaluation.job_id == job.id,
        Evaluation.suite == "perplexity",
        Evaluation.metric == "perplexity",
        Evaluation.stage == "recovered",
        Evaluation.checkpoint_id.is_not(None),
        Evaluation.value.is_not(None),
    )
    return {name: value for name, value in session.execute(query) if name and value is not None}


def _drop_training_state(session: Session, checkpoint: Checkpoint) -> None:
    session.execute(
        delete(CheckpointFile).where(
            CheckpointFile.checkpoint_id == checkpoint.id,
            CheckpointFile.path.startswith(f"{TRAINING_STATE}/", autoescape=True),
        ),
        execution_options={"synchronize_session": False},
    )
    checkpoint.resumable = False


def _drop_weights(session: Session, checkpoint: Checkpoint) -> None:
    session.execute(
        delete(CheckpointFile).where(
            CheckpointFile.checkpoint_id == checkpoint.id, CheckpointFile.path != MANIFEST_NAME
        ),
        execution_options={"synchronize_session": False},
    )
    checkpoint.resumable = False
    checkpoint.status = "deleted"
