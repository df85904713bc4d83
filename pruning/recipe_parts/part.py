"""The base of the recipe and its parts."""

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, model_validator


class Part(BaseModel):
    """Base of the recipe and its parts: immutable, and a misspelt field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _drop_auto(cls, value: object) -> object:
        """`"auto"` means "as if I had not written it": the default, or what the run finds."""
        if isinstance(value, Mapping) and "auto" in value.values():
            return {k: v for k, v in value.items() if not (isinstance(v, str) and v == "auto")}
        return value
