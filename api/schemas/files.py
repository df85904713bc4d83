"""Uploaded files."""

from typing import Literal

from pydantic import Field

from api.schemas.base import Read, Timestamp


class UploadRead(Read):
    """Text that was sent, or is being sent, for jobs to read."""

    id: str = Field(description="`file_` and 32 hexadecimal digits; name it as `data` of a job.")
    object: Literal["file"] = Field("file", description="Always `file`.")
    name: str = Field(description="Its name; the ending says its format.")
    status: Literal["uploading", "ready"] = Field(description="Whether it is whole.")
    size: int | None = Field(description="Bytes; null while not announced.")
    offset: int = Field(description="Bytes that have arrived: where an upload goes on.")
    sha256: str | None = Field(description="Digest, as announced or, once whole, as computed.")
    created_at: Timestamp = Field(description="When the upload began.")
    ready_at: Timestamp | None = Field(description="When it was whole.")


class UploadPage(Read):
    """One page of files, newest first."""

    object: Literal["list"] = Field("list", description="Always `list`.")
    data: list[UploadRead] = Field(description="The files.")
    has_more: bool = Field(description="Whether a page follows.")
    last_id: str | None = Field(description="Pass it as `after` to get the next page.")
