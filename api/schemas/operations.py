"""Whether and what a process is."""

from typing import Literal

from pydantic import Field

from api.schemas.base import Read


class Check(Read):
    """One readiness check."""

    status: Literal["ok", "degraded", "failed"] = Field(description="How it stands.")
    detail: str | None = Field(None, description="What is wrong.")


class Readiness(Read):
    """Whether this process can serve."""

    status: Literal["ok", "degraded", "failed"] = Field(description="The worst of the checks.")
    checks: dict[str, Check] = Field(description="Each check by name.")


class Health(Read):
    """Whether this process is alive."""

    status: Literal["ok"] = Field("ok", description="Always `ok`.")


class Version(Read):
    """What is running."""

    version: str = Field(description="Version of Espalier.")
    python: str = Field(description="Version of Python.")
