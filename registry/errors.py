"""What the registry refuses, each with a code that HTTP and the command line report.

RegistryError
├── NotFound               no such row, or another tenant's
├── InvalidTransition      the job's status does not allow it
├── InvalidCursor          `after` names nothing in this list
├── AlreadyExists          the name is taken
├── AliasMoved             the alias is not where the caller believes it
├── GateNotPassed          a version is not good enough for the alias
├── KeyNotActive           an API key that is revoked or over cannot be rotated
├── QuotaExceeded          the tenant may not have more of it
├── FileInUse              a job that has not ended reads it
├── FileNotUsable          a recipe names a file that is not there, or not whole
├── CredentialNotUsable    a recipe names a credential that is not there
├── ChecksumMismatch       what arrived hashes to something else than was announced
├── LeaseLost              the fence moved on: whoever holds this lease must stop, not retry
│   └── CommitConflict     another execution already committed this increment
├── InvalidApiKey          unknown or revoked
│   └── ExpiredApiKey
├── IdempotencyConflict    the key cannot be used for this request
│   ├── IdempotencyKeyReused   same key, other request
│   └── IdempotencyInProgress  same request, not answered yet
├── BackupRefused          it would overwrite something, or is not whole
└── StorageError
    ├── BlobNotFound
    ├── ArtifactsAway      the store does not answer, or refuses
    ├── BlobCorrupt        the bytes do not hash to their name
    └── StorageFull        no room, or about to be
"""

from typing import ClassVar

from registry.status import JobAction, JobStatus


class RegistryError(Exception):
    """Base of every error the registry raises on purpose; `code` names the kind for programs."""

    code: ClassVar[str] = "internal"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class NotFound(RegistryError):
    code = "not_found"

    def __init__(self, kind: str, identifier: str) -> None:
        super().__init__(f"no {kind} {identifier!r}")
        self.kind = kind
        self.identifier = identifier


class InvalidTransition(RegistryError):
    """Carries the status found and what a user may ask for instead."""

    code = "invalid_state"

    def __init__(
        self, message: str, *, status: JobStatus, allowed_actions: list[JobAction]
    ) -> None:
        super().__init__(message)
        self.status = status
        self.allowed_actions = allowed_actions


class InvalidCursor(RegistryError):
    code = "bad_cursor"


class AlreadyExists(RegistryError):
    code = "already_exists"


class AliasMoved(RegistryError):
    """Somebody else moved the alias first; `revision` is where it stands."""

    code = "version_mismatch"

    def __init__(self, message: str, *, revision: int | None) -> None:
        super().__init__(message)
        self.revision = revision


class GateNotPassed(RegistryError):
    code = "gate_not_passed"


class KeyNotActive(RegistryError):
    code = "key_not_active"


class QuotaExceeded(RegistryError):
    """The tenant's `limit` is used up; `code` says which."""

    def __init__(self, code: str, message: str, limit: int) -> None:
        super().__init__(f"{message}; the limit is {limit}")
        self.code = code  # type: ignore[misc]  # One class for all quotas.
        self.limit = limit


class FileInUse(RegistryError):
    code = "file_in_use"


class FileNotUsable(RegistryError):
    """Names the recipe field that refers to the file."""

    code = "file_not_usable"

    def __init__(self, message: str, *, param: str) -> None:
        super().__init__(message)
        self.param = param


class CredentialNotUsable(RegistryError):
    """Names the recipe field that refers to the credential."""

    code = "credential_not_usable"

    def __init__(self, message: str, *, param: str) -> None:
        super().__init__(message)
        self.param = param


class ChecksumMismatch(RegistryError):
    code = "checksum_mismatch"


class LeaseLost(RegistryError):
    code = "lease_lost"


class CommitConflict(LeaseLost):
    code = "commit_conflict"


class InvalidApiKey(RegistryError):
    code = "invalid_key"


class ExpiredApiKey(InvalidApiKey):
    code = "expired_key"


class IdempotencyConflict(RegistryError):
    code = "idempotency_conflict"


class IdempotencyKeyReused(IdempotencyConflict):
    code = "idempotency_key_reuse"


class IdempotencyInProgress(IdempotencyConflict):
    code = "idempotency_in_progress"


class BackupRefused(RegistryError):
    code = "backup_refused"


class StorageError(RegistryError):
    code = "storage_error"


class ArtifactsAway(StorageError):
    code = "artifacts_away"


class BlobNotFound(StorageError):
    code = "not_found"


class BlobCorrupt(StorageError):
    code = "checkpoint_corrupt"


class StorageFull(StorageError):
    code = "storage_full"
