"""What the `espalier` command exits with; docs/api.md has the same table."""

from espalier import errors

JOB_FAILED = 1
JOB_CANCELLED = 7
INTERRUPTED = 130
_BY_ERROR: dict[type[Exception], int] = {
    errors.NotAuthorized: 4,
    errors.ServerFailed: 5,
    errors.ServerUnreachable: 5,
    errors.ChecksumMismatch: 6,
    errors.EspalierError: 3,
}
MEANINGS = {
    0: "done",
    JOB_FAILED: "the job failed, or `up`, `fsck`, `backup` or `restore` did",
    2: "wrong usage",
    3: "the server refused the request",
    4: "the key is missing or refused",
    5: "the server is unreachable or failed",
    6: "a download does not match its digest",
    JOB_CANCELLED: "the job was cancelled",
    INTERRUPTED: "interrupted",
}


def exit_code_of(error: errors.EspalierError) -> int:
    """The code that an error ends the command with."""
    return next(code for kind, code in _BY_ERROR.items() if isinstance(error, kind))
