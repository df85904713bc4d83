"""What a recipe measures of each checkpoint, and the quality it must not fall below."""

import re
from string import Formatter
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from pruning.recipe_parts.data import DataSource, PathData, UploadData, parse_data_source
from pruning.recipe_parts.model import ModelSource, parse_model
from pruning.recipe_parts.part import Part


class PerplexitySuite(Part):
    """Perplexity on a text of the user's own, in windows that do not overlap, whole ones only.

    `wikitext` joins the lines as the pruning papers do for WikiText-2: blank lines are empty
    rows, two newlines stand between rows. `as_is` takes the text as it stands.
    """

    kind: Literal["perplexity"] = "perplexity"
    name: str = Field(pattern=r"^[\w.-]{1,48}$", description="A name; distinct within the recipe.")
    source: DataSource = Field(description="The text.")
    context_lengths: tuple[Annotated[int, Field(ge=8)], ...] = Field(
        (2048,), min_length=1, description="Windows, in tokens."
    )
    join: Literal["as_is", "wikitext"] = Field("as_is", description="How lines become one text.")
    max_tokens: int | None = Field(None, gt=0, description="The text is cut there.")

    @field_validator("source", mode="before")
    @classmethod
    def _simple_source(cls, value: object) -> object:
        return parse_data_source(value) if isinstance(value, str) else value


class HarnessSuite(Part):
    """A task of lm-evaluation-harness, by its name there."""

    kind: Literal["lm_eval"] = "lm_eval"
    task: str = Field(pattern=r"^[\w.-]{1,64}$", description="Its name, such as `arc_easy`.")
    num_fewshot: int | None = Field(
        None, ge=0, le=64, description="Solved examples before each. Default: the task's own."
    )
    limit: int | None = Field(None, gt=0, description="No more than so many rows.")

    @property
    def name(self) -> str:
        """What it is called in evaluations."""
        return self.task


RowKind = Literal["choice", "letters", "partial", "lastword", "answer"]
_PROMPT_FIELD = re.compile(r"\w+(\[\d+\])?")


class RowsSuite(Part):
    """Rows of a JSON Lines file as a task; docs/evaluation.md has their format by kind."""

    kind: Literal["rows"] = "rows"
    name: str = Field(pattern=r"^[\w.-]{1,64}$", description="A name; distinct within the recipe.")
    source: Annotated[PathData | UploadData, Field(discriminator="kind")]
    rows: RowKind = Field("choice", description="How a row is scored.")
    prompt: str = Field(
        "{query}", max_length=4096, description="The context, with the row's fields in braces."
    )
    exemplars: Annotated[PathData | UploadData, Field(discriminator="kind")] | None = Field(
        None, description="Rows of the same format to show before each; never scored."
    )
    num_fewshot: int = Field(0, ge=0, le=64, description="How many of them, from the first on.")
    limit: int | None = Field(None, gt=0, description="No more than so many rows.")

    @field_validator("source", "exemplars", mode="before")
    @classmethod
    def _simple_source(cls, value: object) -> object:
        return parse_data_source(value) if isinstance(value, str) else value

    @field_validator("prompt")
    @classmethod
    def _plain_fields(cls, prompt: str) -> str:
        # Attributes and widths would reach into Python, or ask for gigabytes of blanks.
        for _, field, spec, conversion in Formatter().parse(prompt):
            plain = field is None or _PROMPT_FIELD.fullmatch(field)
            if not plain or spec or conversion:
                raise ValueError(f"only {{field}} and {{field[0]}} are allowed, not {field!r}")
        return prompt

    @model_validator(mode="after")
    def _exemplars_to_show(self) -> Self:
        if self.num_fewshot and self.exemplars is None:
            raise ValueError("num_fewshot needs exemplars")
        return self


Suite = Annotated[PerplexitySuite | HarnessSuite | RowsSuite, Field(discriminator="kind")]


def parse_suite(text: str) -> dict[str, Any]:
    """The name of an lm-eval task, or the absolute path of a text to take the perplexity of."""
    if text.startswith("/"):
        stem = re.sub(r"[^\w.-]", "_", text.rpartition("/")[2].partition(".")[0])
        return {"kind": "perplexity", "name": stem[:48] or "text", "source": text}
    return {"kind": "lm_eval", "task": text}


class Evaluation(Part):
    """What is measured of each checkpoint."""

    context_length: int = Field(
        512, ge=8, description="Window of the held-out perplexity, in tokens."
    )
    speed: bool = Field(True, description="Measure prefill and decode of the base and final model.")
    suites: tuple[Suite, ...] = Field(
        (), max_length=64, description="Measured of the base model and of the final one, at least."
    )
    suites_of: Literal["final", "every"] = Field(
        "final", description="Whether the suites measure the checkpoints on the way as well."
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="Of the suites' products; bfloat16 flips some answers."
    )
    compare_with: tuple[ModelSource, ...] = Field(
        (), max_length=8, description="Models one might download instead: measured by the suites."
    )
    first_rows: int = Field(
        100, ge=0, description="Tasks report on so many rows before they go through all."
    )

    @field_validator("suites", mode="before")
    @classmethod
    def _simple_suites(cls, value: object) -> object:
        if isinstance(value, list | tuple):
            return tuple(parse_suite(item) if isinstance(item, str) else item for item in value)
        return value

    @field_validator("compare_with", mode="before")
    @classmethod
    def _simple_models(cls, value: object) -> object:
        if isinstance(value, list | tuple):
            return tuple(parse_model(item) if isinstance(item, str) else item for item in value)
        return value

    @field_validator("suites")
    @classmethod
    def _distinct_names(cls, suites: tuple[Suite, ...]) -> tuple[Suite, ...]:
        names = [suite.name for suite in suites]
        reserved = {"perplexity", "speed", "domains"}
        if len(set(names)) != len(names) or reserved & set(names):
            raise ValueError(
                f"names must be distinct, and none of {', '.join(sorted(reserved))}; "
                f"got {', '.join(names)}"
            )
        return suites


class QualityFloor(Part):
    """Stop before the increment that would break it; the outcome is then `quality_floor`."""

    metric: Literal["perplexity_ratio"] = Field("perplexity_ratio", description="What is watched.")
    max: float = Field(gt=1, description="Its largest value.")
