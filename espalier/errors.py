"""What can go wrong between a client and a server.

EspalierError
├── ServerUnreachable    nobody answers at that address
├── ChecksumMismatch     a downloaded file is not what the server says it is
├── JobEnded             a job that was waited for failed or was cancelled
└── ServerProblem        the server answered with an RFC 9457 problem
    ├── NotAuthorized    401, 403
    ├── NotFound         404, 410
    ├── Conflict         409, 412: not in this state (`allowed_actions` says what would be)
    ├── InvalidRequest   the other 4xx
    └── ServerFailed     5xx
"""

from collections.abc import Mapping
from typing import Any

import httpx
from pydantic import ValidationError

from espalier.resources import Job, Problem


class EspalierError(Exception):
    """Base of every error the client raises on purpose."""


class ServerUnreachable(EspalierError):
    """Nobody answers at the address, or the connection broke more often than is worth retrying."""


class ChecksumMismatch(EspalierError):
    """A file arrived whole and hashes to something else than the server says."""


class JobEnded(EspalierError):
    """A job that was waited for ended without a model."""

    def __init__(self, job: Job) -> None:
        reason = job.error.message if job.error else job.status_reason
        super().__init__(f"{job.id} {job.status}" + (f": {reason}" if reason else ""))
        self.job = job


class ServerProblem(EspalierError):
    """The server's answer to a request it did not carry out."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(_sentence(problem))
        self.problem = problem


class NotAuthorized(ServerProblem):
    """The key is missing, unknown, expired or lacks the scope."""


class NotFound(ServerProblem):
    """There is no such thing, or none that this key may see."""


class Conflict(ServerProblem):
    """The object is not in a state that allows it."""


class InvalidRequest(ServerProblem):
    """The request breaks the contract; the message names the field and what would be allowed."""


class ServerFailed(ServerProblem):
    """The server could not, whatever the request."""


_BY_STATUS: Mapping[int, type[ServerProblem]] = {
    401: NotAuthorized,
    403: NotAuthorized,
    404: NotFound,
    409: Conflict,
    410: NotFound,
    412: Conflict,
}


def raise_for_problem(response: httpx.Response) -> None:
    """Raise what the answer means; nothing on success. The body must have been read.

    Raises:
        ServerProblem: the status is 4xx or 5xx.
    """
    status = response.status_code
    if status < 400:
        return
    default = InvalidRequest if status < 500 else ServerFailed
    raise _BY_STATUS.get(status, default)(_parse(response))


def _parse(response: httpx.Response) -> Problem:
    try:
        body: dict[str, Any] = {"status": response.status_code, **response.json()}
        return Problem.model_validate(body)
    except (ValueError, TypeError, ValidationError):  # a proxy's page, not ours
        title = response.reason_phrase or "no reason given"
        return Problem(status=response.status_code, title=title, detail=response.text[:200] or None)


def _sentence(problem: Problem) -> str:
    text = problem.detail or problem.title
    if problem.param and problem.param not in text:
        text = f"{problem.param}: {text}"
    details = [
        f"{e.param}: {e.message}" for e in problem.errors if e.message and e.message not in text
    ]
    if problem.allowed_actions:
        details.append("allowed now: " + ", ".join(problem.allowed_actions))
    return "; ".join([text, *details]) + f" [{problem.status} {problem.code}]"
