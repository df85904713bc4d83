"""The audit log."""

from typing import Literal

from pydantic import Field

from api.schemas.base import Read, Timestamp


class AuditEntryRead(Read):
    """A request that changed something, or tried to."""

    id: str = Field(description="`aud_` and 32 hexadecimal digits.")
    object: Literal["audit.entry"] = Field("audit.entry", description="The kind.")
    seq: int = Field(description="Gap-free number within the tenant, from 1.")
    key: str | None = Field(description="The API key that asked.")
    action: str = Field(description="Method and route, such as `POST /v1/jobs/{job_id}/cancel`.")
    path: str = Field(description="The path that was asked for.")
    status: int = Field(description="What was answered.")
    request_id: str = Field(description="Names the request in the server's log.")
    address: str | None = Field(description="Where the request came from.")
    created_at: Timestamp = Field(description="When.")
    previous_hash: str = Field(description="The hash of the entry before; zeros for the first.")
    hash: str = Field(description="sha256 over this entry and `previous_hash`.")


class AuditPage(Read):
    """One page of the audit log, newest first."""

    object: Literal["list"] = Field("list", description="Always `list`.")
    data: list[AuditEntryRead] = Field(description="The entries.")
    has_more: bool = Field(description="Whether a page follows.")
    last_seq: int | None = Field(description="Pass it as `before` to get the next page.")


class AuditVerification(Read):
    """Whether the chain of hashes holds."""

    object: Literal["audit.verification"] = Field("audit.verification", description="The kind.")
    valid: bool = Field(description="Whether every entry is as it was written.")
    entries: int = Field(description="Entries that are.")
    broken_at: int | None = Field(description="The first entry that is not.")
    head: str = Field(description="Hash of the last good entry; note it to notice a cut end.")
