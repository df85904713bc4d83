"""Commits: each increment once, by the holder of the lease, with everything it brings."""

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy.orm import Session

from pruning.events import EvaluationFinished, LayerWidths, RunStarted
from pruning.manifest import Lineage, Manifest, Measurement
from pruning.plan import PruningPlan
from registry import checkpoints, commits, jobs, progress, sweep
from registry.commits import PublishedFile
from registry.db import database_now
from registry.errors import BlobNotFound, CommitConflict, LeaseLost
from registry.settings import Settings
from registry.status import JobStatus
from registry.tables import Blob
from tests.registry.conftest import RECIPE, MakeJob, take

WIDTHS = (LayerWidths(intermediate_size=8, num_attention_heads=2, num_key_value_heads=1),)


def manifest_of(increment: int, *, final: bool = False, **changes: Any) -> Manifest:
    measured = Measurement(
        stage="recovered",
        increment=increment,
        suite="perplexity",
        metric="perplexity",
        value=12.5,
        protocol={"context_length": 8},
    )
    values = {
        "increment": increment,
        "step": increment * 10,
        "num_tokens": increment * 100,
        "num_parameters": 1000 - 100 * increment,
        "base_num_parameters": 1000,
        "target_num_parameters": 700,
        "num_bytes": 2000,
        "dtype": "bfloat16",
        "final": final,
        "outcome": "target_reached" if final else None,
        "widths": WIDTHS,
        "measurements": (measured,),
        "lineage": Lineage(model="m", model_revision=None, parent_manifest_sha256=None),
        "data_fingerprint": "sha256:0",
        "recipe": RECIPE,
        "plan": PruningPlan.keep_all(num_layers=1, intermediate_size=8, num_kv_groups=1),
        "versions": {},
        "created_at": datetime.now(UTC),
        "files": {},
    }
    return Manifest.model_validate({**values, **changes})


def files_of(increment: int) -> list[PublishedFile]:
    names = ("config.json", "training_state/state.json")
    return [PublishedFile(name, sha(f"{increment}{name}"), 10) for name in names]


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_a_commit_moves_the_head(session: Session, make_job: MakeJob) -> None:
    job = make_job()
    lease = take(session, job)
    first = commits.commit_increment(session, lease, manifest_of(1), sha("m1"), files_of(1))
    second = commits.commit_increment(session, lease, manifest_of(2), sha("m2"), files_of(2))
    assert (job.increments_done, job.head_checkpoint_id) == (2, second.id)
    assert (second.parent_id, second.resumable) == (first.id, True)
    line = checkpoints.increments(session, job.id)
    assert [(i.idx, i.params_before, i.params_after) for i in line] == [
        (1, 1000, 900),
        (2, 900, 800),
    ]
    assert [f.path for f in checkpoints.files(session, first.id)] == [
        "config.json",
        "training_state/state.json",
    ]


def test_the_last_commit_ends_the_job(session: Session, make_job: MakeJob) -> None:
    job = make_job()
    lease = take(session, job)
    final = manifest_of(1, final=True)
    checkpoint = commits.commit_increment(session, lease, final, sha("m"), files_of(1))
    assert (job.status, job.outcome, job.lease_owner) == (
        JobStatus.SUCCEEDED,
        "target_reached",
        None,
    )
    assert job.result == {
        "checkpoint": checkpoint.id,
        "params": 900,
        "size_bytes": 2000,
        "reduction": pytest.approx(0.1),
        "eval": {"perplexity": {"perplexity": 12.5}},
        "pruned": {},
        "baseline": {},
        "seconds": pytest.approx(0, abs=60),
    }


def test_a_job_can_end_short_of_its_target_with_its_head(
    session: Session, make_job: MakeJob
) -> None:
    job = make_job()
    lease = take(session, job)
    head = commits.commit_increment(session, lease, manifest_of(1), sha("m"), files_of(1))
    with pytest.raises(CommitConflict):
        commits.finish(session, lease, "quality_floor", increment=2)
    assert commits.finish(session, lease, "quality_floor", increment=1) is JobStatus.SUCCEEDED
    assert job.outcome == "quality_floor"
    assert job.result is not None
    assert (job.result["checkpoint"], job.result["reduction"]) == (head.id, pytest.approx(0.1))


def test_a_job_without_a_checkpoint_cannot_end_well(session: Session, make_job: MakeJob) -> None:
    lease = take(session, make_job())
    with pytest.raises(CommitConflict):
        commits.finish(session, lease, "quality_floor", increment=0)


def test_a_job_being_cancelled_does_not_end_well_in_the_same_moment(
    session: Session, make_job: MakeJob
) -> None:
    job = make_job()
    lease = take(session, job)
    commits.commit_increment(session, lease, manifest_of(1), sha("m"), files_of(1))
    jobs.request_cancel(session, job)
    assert commits.finish(session, lease, "quality_floor", increment=1) is JobStatus.CANCELLED


@pytest.mark.parametrize("increment", [1, 3])
def test_an_increment_that_is_not_the_next_is_refused(
    session: Session, make_job: MakeJob, increment: int
) -> None:
    job = make_job()
    lease = take(session, job)
    commits.commit_increment(session, lease, manifest_of(1), sha("m1"), files_of(1))
    with pytest.raises(CommitConflict):
        commits.commit_increment(
            session, lease, manifest_of(increment), sha("other"), files_of(increment)
        )
    assert job.increments_done == 1


def test_a_zombie_commits_nothing(session: Session, settings: Settings, make_job: MakeJob) -> None:
    job = make_job()
    zombie = take(session, job, "zombie")
    later = database_now(session) + timedelta(hours=1)
    sweep.expire_leases(session, settings, later)
    successor = take(session, job, "successor")
    with pytest.raises(LeaseLost):
        commits.commit_increment(session, zombie, manifest_of(1), sha("zombie"), files_of(1))
    assert checkpoints.list_for_job(session, job.id) == []
    commits.commit_increment(session, successor, manifest_of(1), sha("good"), files_of(1))
    with pytest.raises(LeaseLost):
        commits.commit_increment(session, zombie, manifest_of(2), sha("zombie"), files_of(2))
    assert [c.manifest_sha256 for c in checkpoints.list_for_job(session, job.id)] == [sha("good")]


def test_a_commit_whose_answer_was_lost_can_be_repeated(
    session: Session, make_job: MakeJob
) -> None:
    job = make_job()
    lease = take(session, job)
    final = manifest_of(1, final=True)
    first = commits.commit_increment(session, lease, final, sha("m"), files_of(1))
    again = commits.commit_increment(session, lease, final, sha("m"), files_of(1))
    assert again.id == first.id
    assert job.increments_done == 1


def test_a_job_being_cancelled_takes_no_more_commits(session: Session, make_job: MakeJob) -> None:
    job = make_job()
    lease = take(session, job)
    jobs.request_cancel(session, job)
    with pytest.raises(CommitConflict):
        commits.commit_increment(session, lease, manifest_of(1), sha("m"), files_of(1))


def test_progress_sets_the_failures_back(session: Session, make_job: MakeJob) -> None:
    job = make_job()
    job.failures = 3
    lease = take(session, job)
    commits.commit_increment(session, lease, manifest_of(1), sha("m"), files_of(1))
    assert job.failures == 0


def test_a_blob_being_deleted_cannot_be_referred_to(session: Session, make_job: MakeJob) -> None:
    job = make_job()
    lease = take(session, job)
    file = files_of(1)[0]
    session.add(
        Blob(
            sha256=file.sha256,
            size_bytes=10,
            status="deleting",
            created_at=database_now(session),
        )
    )
    session.flush()
    with pytest.raises(BlobNotFound):
        commits.commit_increment(session, lease, manifest_of(1), sha("m"), [file])


def test_a_measurement_made_again_replaces_the_lost_one(
    session: Session, make_job: MakeJob
) -> None:
    job = make_job()
    lease = take(session, job)
    for value in (20.0, float("nan"), 12.5):
        progress.record_evaluation(session, lease, _evaluation(value))
    checkpoint = commits.commit_increment(session, lease, manifest_of(1), sha("m"), files_of(1))
    [evaluation] = checkpoints.evaluations_for_job(session, job.id)
    assert (evaluation.value, evaluation.checkpoint_id) == (12.5, checkpoint.id)


def _evaluation(value: float) -> EvaluationFinished:
    return EvaluationFinished(
        increment=1,
        stage="recovered",
        num_tokens=100,
        suite="perplexity",
        metric="perplexity",
        value=value,
        protocol={"context_length": 8},
    )


def test_what_a_run_found_is_kept(session: Session, make_job: MakeJob) -> None:
    job = make_job()
    started = RunStarted(
        num_parameters=1000,
        num_prunable_parameters=900,
        target_num_parameters=700,
        num_increments=3,
        num_tokens=300,
        num_calibration_samples=32,
        calibration_sequence_length=256,
        first_increment=1,
        model_revision="0" * 40,
        model_type="llama",
        data_fingerprint="sha256:0",
        widths=WIDTHS,
        versions={"torch": "2"},
        device="cpu",
    )
    progress.record_run_started(session, take(session, job), started)
    assert (job.params_start, job.params_target, job.increments_planned, job.tokens_planned) == (
        1000,
        700,
        3,
        300,
    )
    assert job.resolved is not None
    assert job.resolved["model_revision"] == "0" * 40
    assert job.resolved["num_calibration_samples"] == 32
    assert job.resolved["calibration_sequence_length"] == 256
