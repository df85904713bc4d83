"""One slice of a job: take the lease, run the child from the last checkpoint, keep its work."""

import functools
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from pruning.errors import PruningError
from pruning.recipe import Recipe
from registry import commits, credentials, leases, logs, rollback, tracing
from registry.db import reading, transaction
from registry.errors import (
    BlobCorrupt,
    BlobNotFound,
    CredentialNotUsable,
    LeaseLost,
    StorageFull,
)
from registry.failures import JobError
from registry.leases import Lease
from registry.status import JobStatus
from registry.sweep import backoff
from registry.tables import Job
from registry.tracing import Attribute
from worker import kept
from worker.child import Invocation, child_environment
from worker.heartbeat import Heartbeat
from worker.publish import materialise
from worker.recorder import Recorder
from worker.slice import Slice
from worker.uploads import localise_uploads
from worker.verdict import Ending, Failed, Finished, Released, judge
from worker.workplace import Workplace

_EXIT_SECONDS = 10.0

logger = logging.getLogger(__name__)


def claim(workplace: Workplace) -> Lease | None:
    """The lease of the job whose turn it is; None if there is none, or this worker ends."""
    if workplace.stopping.is_set():
        return None
    settings = workplace.settings
    with tracing.span("claim") as found, transaction(workplace.factory) as session:
        lease = leases.acquire_next(
            session, settings.queues, workplace.identity.id, settings.lease_seconds
        )
        if lease is not None:
            found |= {"job_id": lease.job_id, "attempt": lease.attempt, "fence": lease.fence}
    return lease


def work(workplace: Workplace, lease: Lease) -> None:
    """Run a slice of a leased job and write down how it ended."""
    ids: dict[str, Attribute] = {
        "job_id": lease.job_id,
        "attempt": lease.attempt,
        "fence": lease.fence,
    }
    with (
        logs.bound(**ids, worker=lease.owner),
        tracing.span("slice", **ids),
        Heartbeat(workplace, lease) as heartbeat,
        _attempt_directory(workplace, lease) as directory,
    ):
        logger.info("job %s: leased", lease.job_id)
        try:
            verdict = _run_child(workplace, lease, heartbeat, directory)
        except LeaseLost as error:
            logger.warning("job %s: %s", lease.job_id, error)
            return
        # The one place that catches everything: whatever broke, the job must hear of it.
        except Exception as error:  # noqa: BLE001
            verdict = _verdict_of(error)
        _conclude(workplace, lease, verdict)


def _run_child(
    workplace: Workplace, lease: Lease, heartbeat: Heartbeat, directory: Path
) -> Released | Failed | None:
    lease, resume_from = _open_head(workplace, lease, directory / "resume")
    invocation = _prepare(workplace, lease, directory, resume_from)
    recorder = Recorder(workplace, lease, given_up=lambda: heartbeat.lost)
    with workplace.parking.start(invocation) as child:
        logger.info("job %s: child %d, log %s", lease.job_id, child.pid, invocation.log_path)
        slice_ = Slice(
            workplace=workplace,
            lease=lease,
            heartbeat=heartbeat,
            child=child,
            recorder=recorder,
            out_dir=invocation.out_dir,
        )
        slice_.watch()
        recorder.flush()
        exit_code = child.wait(_EXIT_SECONDS)
        if exit_code is None:
            child.kill()
            exit_code = child.wait(_EXIT_SECONDS) or 0
    if slice_.committed_final:
        return None
    ending = Ending(
        exit_code=exit_code,
        stop=slice_.stop,
        said_finished=recorder.finished,
        said_stopped=recorder.stopped is not None,
        said_failed=recorder.failed,
        log_tail=child.log_tail(),
    )
    verdict = judge(ending)
    if isinstance(verdict, Finished):
        _finish(workplace, lease, verdict)
        return None
    return verdict


def _finish(workplace: Workplace, lease: Lease, finished: Finished) -> None:
    workplace.apply(
        lambda session: commits.finish(
            session, lease, finished.outcome, increment=finished.increment
        )
    )


@contextmanager
def _attempt_directory(workplace: Workplace, lease: Lease) -> Iterator[Path]:
    """A fresh directory for this attempt; what earlier ones left on this host goes first.

    Of a job that will be tried again, or resumed, the increment in progress stays.
    """
    job_dir = workplace.settings.work_dir / lease.job_id
    kept.rescue(job_dir)
    directory = job_dir / f"{lease.fence:06d}"
    directory.mkdir(mode=0o700, parents=True)
    try:
        yield directory
    finally:
        kept.leave(directory, goes_on=_goes_on(workplace, lease.job_id))


def _goes_on(workplace: Workplace, job_id: str) -> bool:
    try:
        with reading(workplace.factory) as session:
            return session.get_one(Job, job_id).status in (JobStatus.QUEUED, JobStatus.PAUSED)
    except SQLAlchemyError:
        return False  # The database is away, and the disk must not fill up meanwhile.


def _open_head(workplace: Workplace, lease: Lease, directory: Path) -> tuple[Lease, Path | None]:
    """The checkpoint to resume from as a directory, the newest that is whole.

    Raises:
        BlobCorrupt, BlobNotFound: none is.
    """
    while lease.head_checkpoint_id is not None:
        try:
            return lease, materialise(workplace, lease.head_checkpoint_id, directory)
        except (BlobCorrupt, BlobNotFound) as error:
            message = str(error)
            logger.warning("job %s: %s: %s", lease.job_id, lease.head_checkpoint_id, message)
            shutil.rmtree(directory, ignore_errors=True)
            earlier = workplace.apply(
                functools.partial(rollback.reject_head, lease=lease, message=message)
            )
            if earlier is None:
                raise
            lease = earlier
    return lease, None


def _prepare(
    workplace: Workplace, lease: Lease, directory: Path, resume_from: Path | None
) -> Invocation:
    recipe_path = directory / "recipe.json"
    recipe = localise_uploads(workplace, lease)
    recipe_path.write_text(json.dumps(recipe), encoding="utf-8")
    out_dir = directory / "out"
    out_dir.mkdir()
    unpublished = kept.hand_over(directory.parent, out_dir)
    settings = workplace.settings
    return Invocation(
        command=settings.child_command,
        recipe_path=recipe_path,
        out_dir=out_dir,
        resume_from=resume_from or unpublished,
        device=settings.child_device,
        environment=child_environment(os.environ, lease.recipe) | _hub_token(workplace, lease),
        log_path=settings.data_dir / "logs" / lease.job_id / f"attempt-{lease.fence:06d}.log",
    )


def _hub_token(workplace: Workplace, lease: Lease) -> dict[str, str]:
    """The tenant's own token for its model; it goes to the child and nowhere else.

    Raises:
        CredentialNotUsable: it was deleted.
    """
    recipe = Recipe.model_validate(lease.recipe)
    with reading(workplace.factory) as session:
        tenant_id = session.get_one(Job, lease.job_id).tenant_id
        master = workplace.settings.installation_secret
        token = credentials.of_recipe(session, tenant_id, recipe, master)
    return {} if token is None else {"HF_TOKEN": token}


def _verdict_of(error: Exception) -> Released | Failed:
    """What an error of the worker itself means for the job."""
    if isinstance(error, StorageFull):
        return Released(cause="storage_full", reason="storage_full", pause=True)
    logger.error("attempt broke", exc_info=error)
    if isinstance(error, BlobCorrupt | BlobNotFound):
        return _broken("checkpoint_corrupt", str(error), retryable=False)
    if isinstance(error, PruningError):
        return _broken(error.code, error.message, retryable=error.retryable)
    if isinstance(error, CredentialNotUsable):
        return _broken(error.code, error.message, retryable=False)
    return _broken("internal", f"{type(error).__name__} in the worker", retryable=True)


def _broken(code: str, message: str, *, retryable: bool) -> Failed:
    return Failed(cause="error", error=JobError(code=code, message=message, retryable=retryable))


def _conclude(workplace: Workplace, lease: Lease, verdict: Released | Failed | None) -> None:
    """Write how the attempt ended; None when the end of the job already said so."""
    try:
        if isinstance(verdict, Released):
            workplace.apply(
                lambda session: leases.release(
                    session,
                    lease,
                    cause=verdict.cause,
                    reason=verdict.reason,
                    pause=verdict.pause,
                )
            )
        elif isinstance(verdict, Failed):
            workplace.apply(
                lambda session: commits.fail(
                    session,
                    lease,
                    verdict.error,
                    cause=verdict.cause,
                    exit_code=verdict.exit_code,
                    backoff=backoff(workplace.settings),
                    lost=verdict.lost,
                )
            )
    except LeaseLost as error:
        logger.warning("job %s: %s", lease.job_id, error)
    logger.info("job %s: attempt over: %s", lease.job_id, verdict.cause if verdict else "finished")
