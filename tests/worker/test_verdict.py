"""What an ended child means for its job."""

from dataclasses import replace

import pytest

from pruning.events import Outcome, RunFailed, RunFinished
from worker.verdict import Ending, Failed, Finished, Released, Stop, judge

QUIET = Ending(
    exit_code=0,
    stop=None,
    said_finished=None,
    said_stopped=False,
    said_failed=None,
    log_tail="",
)


def failed(code: str, *, retryable: bool) -> RunFailed:
    return RunFailed(code=code, message="m", retryable=retryable)


@pytest.mark.parametrize(
    ("ending", "cause", "retryable"),
    [
        (replace(QUIET, exit_code=-9), "killed", True),
        (replace(QUIET, exit_code=-11), "segfault", True),
        (replace(QUIET, exit_code=-40), "killed", True),
        (replace(QUIET, exit_code=75), "error", True),
        (replace(QUIET, exit_code=78), "error", False),
        (replace(QUIET, exit_code=1), "error", True),
        (QUIET, "error", True),
        (replace(QUIET, exit_code=-9, stop=Stop.STALLED), "stalled", True),
        (
            replace(QUIET, exit_code=78, said_failed=failed("data_invalid", retryable=False)),
            "error",
            False,
        ),
        (
            replace(QUIET, exit_code=75, said_failed=failed("gpu_oom", retryable=True)),
            "error",
            True,
        ),
    ],
)
def test_a_failure_has_a_cause(ending: Ending, cause: str, retryable: bool) -> None:
    verdict = judge(ending)
    assert isinstance(verdict, Failed)
    assert (verdict.cause, verdict.error.retryable) == (cause, retryable)
    assert verdict.exit_code == ending.exit_code
    assert verdict.lost == (ending.exit_code < 0)


@pytest.mark.parametrize(
    ("ending", "cause", "pause"),
    [
        (replace(QUIET, said_stopped=True), "stopped", False),
        (replace(QUIET, stop=Stop.SLICE, said_stopped=True), "slice", False),
        (replace(QUIET, stop=Stop.SHUTDOWN, exit_code=-9), "shutdown", False),
        (replace(QUIET, stop=Stop.PAUSE, exit_code=-9), "pause", False),
        (replace(QUIET, stop=Stop.CANCEL, exit_code=-9), "cancelled", False),
        (
            replace(QUIET, exit_code=75, said_failed=failed("storage_full", retryable=True)),
            "storage_full",
            True,
        ),
    ],
)
def test_a_stop_is_no_failure(ending: Ending, cause: str, pause: bool) -> None:
    verdict = judge(ending)
    assert isinstance(verdict, Released)
    assert (verdict.cause, verdict.pause) == (cause, pause)


def finished(outcome: Outcome) -> RunFinished:
    return RunFinished(outcome=outcome, num_parameters=700, increment=2)


def test_a_run_that_ends_at_its_quality_floor_has_succeeded() -> None:
    ending = replace(QUIET, said_finished=finished("quality_floor"))
    assert judge(ending) == Finished(outcome="quality_floor", increment=2)
    # It ended by itself, whatever was asked of it in the same moment.
    assert judge(replace(ending, stop=Stop.SLICE)) == judge(ending)


def test_a_target_said_to_be_reached_without_its_checkpoint_is_an_error() -> None:
    verdict = judge(replace(QUIET, said_finished=finished("target_reached")))
    assert isinstance(verdict, Failed)
    assert verdict.error.retryable
