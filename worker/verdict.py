"""What an ended child means for its job: the table of exit codes, pure."""

import signal
from dataclasses import dataclass
from enum import StrEnum

from pruning.events import Outcome, RunFailed, RunFinished
from registry import leases
from registry.failures import JobError

EXIT_RETRYABLE = 75
EXIT_FATAL = 78


class Stop(StrEnum):
    """Why the worker stopped the child, if it did."""

    SLICE = "slice"  # others shall have a turn
    PREEMPTED = leases.PREEMPTED  # a job of higher priority waits
    SHUTDOWN = "shutdown"  # this worker ends
    PAUSE = "pause"
    CANCEL = "cancel"
    LOST = "fenced"  # the job is someone else's now
    STALLED = "stalled"  # the child was silent for too long


GENTLE = frozenset({Stop.SLICE, Stop.PREEMPTED, Stop.SHUTDOWN, Stop.PAUSE})
"""Asked to stop at the next boundary; the others are killed."""


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The run ended short of its target, as its recipe allows: the head is the result."""

    outcome: Outcome
    increment: int
    cause: str = "finished"


@dataclass(frozen=True, kw_only=True)
class Released:
    """The attempt ended unharmed; `pause` parks the job for `reason`."""

    cause: str
    reason: str | None = None
    pause: bool = False


@dataclass(frozen=True, kw_only=True)
class Failed:
    """The attempt failed; `lost` when something outside the program ended it."""

    cause: str
    error: JobError
    exit_code: int | None = None
    lost: bool = False


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a child ended: its exit code, whether we stopped it, and its last words."""

    exit_code: int
    stop: Stop | None
    said_finished: RunFinished | None
    said_stopped: bool
    said_failed: RunFailed | None
    log_tail: str


def judge(ending: Ending) -> Finished | Released | Failed:
    """Whether the job is done, goes back as it is, or has failed once more.

    One that reached its target is never judged: the commit of its last increment ended it. 0 is
    the end of a run or a stop at a boundary, 75 an error that may pass, 78 one that will not; a
    negative code is the signal that ended it.
    """
    if ending.stop is Stop.STALLED:
        return _failed(ending, "stalled", "the run reported nothing for too long", lost=True)
    if ending.stop is Stop.CANCEL:
        return Released(cause="cancelled")
    if ending.said_failed is not None:
        return _judge_failure(ending, ending.said_failed)
    said = ending.said_finished
    if ending.exit_code == 0 and said is not None and said.outcome != "target_reached":
        return Finished(outcome=said.outcome, increment=said.increment)
    if ending.stop is not None:
        return Released(cause=ending.stop.value)
    if ending.exit_code == 0 and ending.said_stopped:
        return Released(cause="stopped")
    if ending.exit_code < 0:
        name = _signal_name(-ending.exit_code)
        return _failed(ending, _SIGNAL_CAUSES.get(name, "killed"), f"killed by {name}", lost=True)
    return _judge_exit_code(ending)


_SIGNAL_CAUSES = {"SIGSEGV": "segfault", "SIGBUS": "segfault", "SIGABRT": "aborted"}


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _judge_failure(ending: Ending, failed: RunFailed) -> Released | Failed:
    if failed.code == "storage_full":
        return Released(cause="storage_full", reason="storage_full", pause=True)
    error = JobError(
        code=failed.code,
        message=failed.message,
        retryable=failed.retryable,
        param=failed.param,
        hint=failed.hint,
        log_tail=ending.log_tail,
    )
    return Failed(cause="error", error=error, exit_code=ending.exit_code)


def _judge_exit_code(ending: Ending) -> Failed:
    if ending.exit_code == 0:
        return _failed(ending, "error", "the run ended without saying how")
    message = f"the run ended with exit code {ending.exit_code}"
    return _failed(ending, "error", message, retryable=ending.exit_code != EXIT_FATAL)


def _failed(
    ending: Ending, cause: str, message: str, *, retryable: bool = True, lost: bool = False
) -> Failed:
    error = JobError(
        code="internal", message=message, retryable=retryable, log_tail=ending.log_tail
    )
    return Failed(cause=cause, error=error, exit_code=ending.exit_code, lost=lost)
