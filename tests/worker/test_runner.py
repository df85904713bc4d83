"""One slice with a real child process, on both databases."""

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from registry import checkpoints, events, jobs, metrics, placement
from registry.db import SessionFactory, reading, transaction
from registry.status import JobStatus
from registry.tables import Job, JobAttempt
from tests.worker.conftest import Submit, run
from tests.worker.history import check_history
from worker import runner
from worker.workplace import Workplace

Look = Callable[[str], Job]


def attempts(factory: SessionFactory, job_id: str) -> list[JobAttempt]:
    with reading(factory) as session:
        return list(session.query(JobAttempt).filter_by(job_id=job_id).order_by(JobAttempt.fence))


def in_background(workplace: Workplace, job_id: str) -> threading.Thread:
    thread = threading.Thread(target=run, args=(workplace, job_id))
    thread.start()
    return thread


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


def test_a_job_runs_to_its_end(
    workplace: Workplace, submit: Submit, look: Look, factory: SessionFactory
) -> None:
    job_id = submit()
    assert run(workplace, job_id)
    job = look(job_id)
    assert (job.status, job.outcome) == (JobStatus.SUCCEEDED, "target_reached")
    assert (job.increments_done, job.params_now, job.tokens_seen) == (3, 700, 120)
    assert job.result is not None
    assert job.result["checkpoint"] == job.head_checkpoint_id
    check_history(factory, workplace.store, job_id)
    assert not (workplace.settings.work_dir / job_id).exists()


def test_a_job_that_ends_at_its_quality_floor_keeps_its_head_as_the_result(
    workplace: Workplace, submit: Submit, look: Look, factory: SessionFactory
) -> None:
    job_id = submit(floor_at=3)
    run(workplace, job_id)
    job = look(job_id)
    assert (job.status, job.outcome) == (JobStatus.SUCCEEDED, "quality_floor")
    assert (job.increments_done, job.failures) == (2, 0)
    assert job.result is not None
    assert (job.result["checkpoint"], job.result["params"]) == (job.head_checkpoint_id, 800)
    check_history(factory, workplace.store, job_id)


def test_the_child_s_events_become_the_job_s(
    workplace: Workplace, submit: Submit, factory: SessionFactory
) -> None:
    job_id = submit(increments=1)
    run(workplace, job_id)
    with reading(factory) as session:
        types = [event.type for event in events.list_after(session, job_id)]
        steps = metrics.columns(session, job_id, ("loss",))
        evaluations = checkpoints.evaluations_for_job(session, job_id)
    assert types == [
        *("job.created", "job.queued", "job.started", "job.validated", "increment.started"),
        *("phase.changed", "prune.step", "phase.changed", "eval.completed", "phase.changed"),
        *("checkpoint.created", "job.succeeded"),
    ]
    assert steps == {"step": [1, 2, 3, 4], "loss": [3.99, 3.98, 3.97, 3.96]}
    assert [(e.suite, e.stage, e.checkpoint_id is not None) for e in evaluations] == [
        ("perplexity", "recovered", True)
    ]


def test_the_path_of_the_mixture_is_kept(
    workplace: Workplace, submit: Submit, factory: SessionFactory
) -> None:
    job_id = submit(increments=2, weights={"web": 0.75, "code": 0.25})
    run(workplace, job_id)
    with reading(factory) as session:
        log = events.list_after(session, job_id)
    changes = [event.data for event in log if event.type == "mixture.changed"]
    assert [(c["increment"], c["num_tokens"], c["weights"]["web"]) for c in changes] == [
        (1, 0, 0.75),
        (2, 40, 0.75),
    ]


def test_a_message_delivered_twice_runs_once(
    workplace: Workplace, submit: Submit, factory: SessionFactory
) -> None:
    job_id = submit(step_seconds=0.02)
    threads = [in_background(workplace, job_id) for _ in range(4)]
    for thread in threads:
        thread.join()
    assert not run(workplace, job_id)
    assert len(attempts(factory, job_id)) == 1
    check_history(factory, workplace.store, job_id)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_killed_child_is_tried_again_from_the_last_increment(
    workplace: Workplace,
    submit: Submit,
    look: Look,
    factory: SessionFactory,
    tmp_path: Path,
    number: signal.Signals,
) -> None:
    order = {
        "increment": 2,
        "how": "signal",
        "signal": int(number),
        "once": str(tmp_path / "once"),
    }
    job_id = submit(misbehave=order)
    run(workplace, job_id)
    job = look(job_id)
    assert (job.status, job.increments_done, job.failures) == (JobStatus.QUEUED, 1, 1)
    run(workplace, job_id)
    assert look(job_id).status is JobStatus.SUCCEEDED
    first, second = attempts(factory, job_id)
    assert (first.exit_code, second.end_cause) == (-number, "finished")
    assert first.end_cause == {9: "killed", 11: "segfault"}[int(number)]
    check_history(factory, workplace.store, job_id)


def test_what_a_killed_child_kept_of_its_increment_is_there_for_the_next(
    workplace: Workplace, submit: Submit, look: Look, factory: SessionFactory, tmp_path: Path
) -> None:
    found = tmp_path / "found"
    kill = {"increment": 2, "how": "signal", "signal": 9, "once": str(tmp_path / "once")}
    job_id = submit(misbehave=kill, keep={"increment": 2, "found": str(found)})
    run(workplace, job_id)
    job_dir = workplace.settings.work_dir / job_id
    assert [path.name for path in job_dir.glob("*/*")] == ["partial-0002"]
    assert not found.exists()
    run(workplace, job_id)
    assert look(job_id).status is JobStatus.SUCCEEDED
    assert found.exists()
    check_history(factory, workplace.store, job_id)
    assert not job_dir.exists()


def test_steps_that_were_lost_and_run_again_count_once(
    workplace: Workplace, submit: Submit, factory: SessionFactory, tmp_path: Path
) -> None:
    order = {"increment": 2, "how": "exit", "code": 75, "once": str(tmp_path / "once")}
    job_id = submit(misbehave=order)
    run(workplace, job_id)
    run(workplace, job_id)
    with reading(factory) as session:
        assert metrics.columns(session, job_id, ("num_tokens",))["step"] == list(range(1, 13))


def test_a_job_that_gets_nowhere_fails_after_max_attempts(
    workplace: Workplace, submit: Submit, look: Look
) -> None:
    job_id = submit(max_attempts=2, misbehave={"increment": 1, "how": "signal", "signal": 9})
    run(workplace, job_id)
    assert look(job_id).status is JobStatus.QUEUED
    run(workplace, job_id)
    job = look(job_id)
    assert job.status is JobStatus.FAILED
    assert job.error is not None
    assert job.error["code"] == "worker_lost_limit"


@pytest.mark.parametrize(("code", "status"), [(75, JobStatus.QUEUED), (78, JobStatus.FAILED)])
def test_the_exit_code_says_whether_to_try_again(
    workplace: Workplace, submit: Submit, look: Look, code: int, status: JobStatus
) -> None:
    order = {"increment": 1, "how": "fail", "code": code, "name": "data_invalid"}
    job_id = submit(misbehave=order)
    run(workplace, job_id)
    job = look(job_id)
    assert job.status is status
    assert job.status_reason == "as ordered"
    if status is JobStatus.FAILED:
        assert job.error is not None
        assert job.error["code"] == "data_invalid"


def test_what_the_child_printed_is_in_the_error(
    workplace: Workplace, submit: Submit, look: Look
) -> None:
    job_id = submit(misbehave={"increment": 1, "how": "exit", "code": 78})
    run(workplace, job_id)
    error = look(job_id).error
    assert error is not None
    assert "about to leave" in error["log_tail"]


def test_a_slice_of_no_length_commits_one_increment(
    settings, workplace: Workplace, submit: Submit, look: Look, factory: SessionFactory
) -> None:  # type: ignore[no-untyped-def]
    short = Workplace(
        settings=settings.model_copy(update={"slice_seconds": 0.0}),
        factory=workplace.factory,
        store=workplace.store,
        identity=workplace.identity,
    )
    job_id = submit(step_seconds=0.35)
    while look(job_id).status is JobStatus.QUEUED:
        run(short, job_id)
    assert look(job_id).status is JobStatus.SUCCEEDED
    assert [a.end_cause for a in attempts(factory, job_id)][:1] == ["slice"]
    assert len(attempts(factory, job_id)) >= 2
    check_history(factory, workplace.store, job_id)


def test_cancelling_kills_the_child(
    workplace: Workplace, submit: Submit, look: Look, factory: SessionFactory
) -> None:
    job_id = submit(misbehave={"increment": 2, "how": "hang"})
    thread = in_background(workplace, job_id)
    wait_for(lambda: look(job_id).increments_done == 1)
    with transaction(factory) as session:
        jobs.request_cancel(session, jobs.lock(session, job_id))
    thread.join(10)
    assert look(job_id).status is JobStatus.CANCELLED
    check_history(factory, workplace.store, job_id)


def test_a_paused_job_stops_at_a_boundary_and_resumes_there(
    workplace: Workplace, submit: Submit, look: Look, factory: SessionFactory
) -> None:
    job_id = submit(increments=4, step_seconds=0.3)
    thread = in_background(workplace, job_id)
    wait_for(lambda: look(job_id).increments_done == 1)
    with transaction(factory) as session:
        jobs.request_pause(session, jobs.lock(session, job_id))
    thread.join(20)
    paused = look(job_id)
    assert paused.status is JobStatus.PAUSED
    assert 1 <= paused.increments_done < 4
    with transaction(factory) as session:
        jobs.resume(session, jobs.lock(session, job_id))
    run(workplace, job_id)
    assert look(job_id).status is JobStatus.SUCCEEDED
    check_history(factory, workplace.store, job_id)


def test_a_worker_that_ends_gives_the_job_back_at_a_boundary(
    workplace: Workplace, submit: Submit, look: Look, factory: SessionFactory
) -> None:
    job_id = submit(increments=4, step_seconds=0.3)
    thread = in_background(workplace, job_id)
    wait_for(lambda: look(job_id).increments_done == 1)
    workplace.stopping.set()
    thread.join(20)
    job = look(job_id)
    assert (job.status, job.failures) == (JobStatus.QUEUED, 0)
    assert attempts(factory, job_id)[0].end_cause == "shutdown"
    assert runner.claim(workplace) is None


def test_a_child_that_ignores_the_request_to_stop_is_killed(
    settings, workplace: Workplace, submit: Submit, look: Look
) -> None:  # type: ignore[no-untyped-def]
    hurried = Workplace(
        settings=settings.model_copy(update={"stop_grace_seconds": 0.2}),
        factory=workplace.factory,
        store=workplace.store,
        identity=workplace.identity,
    )
    job_id = submit(misbehave={"increment": 2, "how": "hang"})
    thread = in_background(hurried, job_id)
    wait_for(lambda: look(job_id).increments_done == 1)
    hurried.stopping.set()
    thread.join(10)
    assert (look(job_id).status, look(job_id).failures) == (JobStatus.QUEUED, 0)


def test_a_silent_child_is_killed_and_tried_again(
    settings, workplace: Workplace, submit: Submit, factory: SessionFactory, tmp_path: Path
) -> None:  # type: ignore[no-untyped-def]
    impatient = Workplace(
        settings=settings.model_copy(update={"stall_seconds": 3.0}),
        factory=workplace.factory,
        store=workplace.store,
        identity=workplace.identity,
    )
    order = {"increment": 1, "how": "hang", "once": str(tmp_path / "once")}
    job_id = submit(increments=1, misbehave=order)
    run(impatient, job_id)
    run(impatient, job_id)
    assert [a.end_cause for a in attempts(factory, job_id)] == ["stalled", "finished"]


def damage(workplace: Workplace, factory: SessionFactory, job_id: str, increment: int) -> None:
    """Flip a byte of a checkpoint's training state where it is stored."""
    with reading(factory) as session:
        row = checkpoints.list_for_job(session, job_id)[increment - 1]
        file = checkpoints.get_file(session, row.id, "training_state/state.json")
    path = workplace.store.local_path(file.sha256)
    assert path is not None
    content = path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])


def submit_interrupted(submit: Submit, directory: Path) -> str:
    """A job of four increments whose first attempt ends after two."""
    once = str(directory / "once")
    return submit(increments=4, misbehave={"increment": 3, "how": "exit", "code": 75, "once": once})


def test_a_damaged_head_falls_back_to_the_checkpoint_before(
    workplace: Workplace, submit: Submit, look: Look, factory: SessionFactory, tmp_path: Path
) -> None:
    job_id = submit_interrupted(submit, tmp_path)
    run(workplace, job_id)
    damage(workplace, factory, job_id, 2)
    run(workplace, job_id)
    assert look(job_id).status is JobStatus.SUCCEEDED
    with reading(factory) as session:
        warnings = [e for e in events.list_after(session, job_id) if e.type == "warning"]
        line = checkpoints.increments(session, job_id)
    assert [(w.data["code"], w.data["increment"]) for w in warnings] == [("checkpoint_corrupt", 2)]
    assert [i.idx for i in line] == [1, 2, 3, 4]
    check_history(factory, workplace.store, job_id)


def test_a_job_without_a_whole_checkpoint_fails(
    workplace: Workplace, submit: Submit, look: Look, factory: SessionFactory, tmp_path: Path
) -> None:
    job_id = submit_interrupted(submit, tmp_path)
    run(workplace, job_id)
    for increment in (1, 2):
        damage(workplace, factory, job_id, increment)
    run(workplace, job_id)
    job = look(job_id)
    assert job.status is JobStatus.FAILED
    assert job.error is not None
    assert job.error["code"] == "checkpoint_corrupt"


def test_what_the_devices_of_each_attempt_have_used_is_kept_and_summed(
    workplace: Workplace,
    submit: Submit,
    look: Look,
    factory: SessionFactory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counter = tmp_path / "powercap" / "intel-rapl:0"
    counter.mkdir(parents=True)
    (counter / "max_energy_range_uj").write_text("1000000000")
    (counter / "energy_uj").write_text("5000000")
    monkeypatch.setattr("worker.energy.POWERCAP", counter.parent)
    job_id = submit(increments=2, step_seconds=0.05)
    thread = in_background(workplace, job_id)
    wait_for(lambda: look(job_id).increments_done == 1)
    (counter / "energy_uj").write_text("12500000")
    thread.join()
    (attempt,) = attempts(factory, job_id)
    assert attempt.energy_joules == pytest.approx(7.5)
    with reading(factory) as session:
        placed = placement.place(session, session.get_one(Job, job_id))
    assert placed.energy_joules == pytest.approx(7.5)
