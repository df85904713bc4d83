"""The size that a recipe reaches."""

import re
from typing import Any, Self

from pydantic import Field, model_validator

from pruning.recipe_parts.part import Part

_QUANTITY = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<suffix>[KMBkmb]?)")
_MULTIPLIERS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9}


class Shape(Part):
    """A uniform architecture to prune to (Sheared-LLaMA's target shape); absent means unchanged."""

    hidden_size: int | None = Field(None, gt=0, description="Width of the residual stream.")
    intermediate_size: int | None = Field(None, gt=0, description="MLP channels per layer.")
    num_attention_heads: int | None = Field(None, gt=0, description="Query heads per layer.")
    num_key_value_heads: int | None = Field(None, gt=0, description="KV heads per layer.")
    num_hidden_layers: int | None = Field(None, gt=0, description="Decoder layers.")


class Target(Part):
    """The size to reach: exactly one of the four.

    `num_parameters` counts every parameter once (tied ones once); `sparsity` is the share of the
    *prunable* parameters (those of the decoder layers) to remove; `size_bytes` is the weights on
    disk in `output.dtype`; `shape` is an explicit uniform architecture.
    """

    num_parameters: int | None = Field(None, gt=0, description="All parameters, tied ones once.")
    sparsity: float | None = Field(
        None, ge=0, lt=1, description="Share of the prunable parameters to remove."
    )
    size_bytes: int | None = Field(None, gt=0, description="Bytes of the weights on disk.")
    shape: Shape | None = Field(None, description="A uniform architecture.")

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                "give exactly one of num_parameters, sparsity, size_bytes, shape; "
                f"got {', '.join(given) or 'none'}"
            )
        return self


def parse_target(value: str | int) -> dict[str, Any]:
    """`100M`, `1.5B`, `110000000` count parameters; `30%` is the share of prunable ones removed.

    Raises:
        ValueError: the text is neither.
    """
    if isinstance(value, int):
        return {"num_parameters": value}
    text = value.strip()
    if text.endswith("%"):
        try:
            return {"sparsity": float(text[:-1]) / 100}
        except ValueError:
            raise ValueError(f"{value!r} is not a percentage such as '30%'") from None
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ValueError(f"{value!r} is not a size such as '100M', '1.5B' or '30%'")
    return {"num_parameters": round(float(match["number"]) * _MULTIPLIERS[match["suffix"].upper()])}


def long_target(value: object) -> object:
    """A target's long form, if it was given as a text or a number."""
    if isinstance(value, str | int) and not isinstance(value, bool):
        return parse_target(value)
    return value
