"""A look at text before a job is made of it."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from api.schemas.base import Read
from pruning.recipe_parts.data import Data
from pruning.recipe_parts.model import ModelSource, parse_model


class DataPreviewRequest(BaseModel):
    """Text as a job would name it, and the model whose tokens are counted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: Data = Field(description="As in a job.")
    model: ModelSource | None = Field(None, description="As in a job; its tokenizer counts.")

    @field_validator("data", mode="before")
    @classmethod
    def _simple_data(cls, value: object) -> object:
        return {"train": value} if isinstance(value, str) else value

    @field_validator("model", mode="before")
    @classmethod
    def _simple_model(cls, value: object) -> object:
        return parse_model(value) if isinstance(value, str) else value


class DomainPreviewRead(Read):
    """The beginning of one domain."""

    name: str = Field(description="As the job would call it.")
    documents: int = Field(description="How many were looked at.")
    bytes: int = Field(description="Of their text.")
    tokens: int = Field(description="Counted, or a quarter of the bytes.")
    held_out: int = Field(description="Of the documents, how many would be held out.")
    malformed: int = Field(description="Rows that could not be used.")
    copies: int = Field(description="Documents that an earlier one, in any domain, already was.")
    rows: list[str] = Field(description="The beginnings of the first documents.")
    complete: bool = Field(description="Whether all of the domain was looked at.")
    weight: float | None = Field(description="Its weight as given.")
    license: str | None = Field(description="Its license as noted.")


class DataPreviewRead(Read):
    """What a job would read."""

    object: Literal["data.preview"] = Field("data.preview", description="The kind.")
    domains: list[DomainPreviewRead] = Field(description="In the order given.")
    documents: int = Field(description="All that were looked at.")
    tokens: int = Field(description="Of these.")
    tokens_counted: bool = Field(description="Whether the model's tokenizer counted them.")
    warnings: list[str] = Field(description="What you should know before you submit it.")
