"""Stored credentials."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from api.schemas.base import Read, Timestamp


class CredentialCreate(BaseModel):
    """A credential to store."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    name: str | None = Field(None, max_length=100, description="A note to tell them apart.")
    kind: Literal["hf_token"] = Field("hf_token", description="A token of a Hugging Face hub.")
    secret: str = Field(
        repr=False,
        min_length=8,
        max_length=512,
        pattern=r"^[!-~]+$",
        description="Kept encrypted, given to runs that name it, never shown again.",
    )


class CredentialRead(Read):
    """A stored credential, without its secret."""

    id: str = Field(
        description="`cred_` and 32 hexadecimal digits; recipes name it as `credential`."
    )
    object: Literal["credential"] = Field("credential", description="Always `credential`.")
    name: str | None = Field(description="The note given with it.")
    kind: Literal["hf_token"] = Field(description="What it is good for.")
    created_at: Timestamp = Field(description="When it was stored.")


class CredentialList(Read):
    """All credentials of the tenant, oldest first."""

    object: Literal["list"] = Field("list", description="Always `list`.")
    data: list[CredentialRead] = Field(description="The credentials.")
    has_more: Literal[False] = Field(False, description="The list is whole.")
