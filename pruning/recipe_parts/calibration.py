"""How much text a recipe measures its cuts on."""

from dataclasses import dataclass

from pydantic import Field

from pruning.recipe_parts.part import Part

_USUAL_LENGTH = 256
_LENGTH_FOR_MOMENTS = 512
_LEAST_TOKENS = 8_192
_MOST_TOKENS = 32_768


@dataclass(frozen=True, kw_only=True)
class CalibrationSize:
    """The text that one cut is measured on: sequences, tokens of each, sequences at once."""

    num_samples: int
    sequence_length: int
    batch_size: int

    @property
    def num_tokens(self) -> int:
        """Tokens of all sequences."""
        return self.num_samples * self.sequence_length


class Calibration(Part):
    """Text that importance is measured on, drawn anew from the training text for each increment."""

    num_samples: int | None = Field(
        None,
        gt=0,
        description="Sequences drawn. Default: 8,192 tokens; where second moments are measured, "
        "half of what an increment trains on, 8,192 to 32,768, and 32,768 where nothing trains.",
    )
    sequence_length: int | None = Field(
        None,
        ge=8,
        description="Tokens of each. Default: 512 where second moments are measured, else 256; "
        "fewer where no domain has as many.",
    )
    batch_size: int = Field(8, gt=0, description="Sequences measured at once.")

    def sized(
        self, *, moments: bool, tokens_between: int | None, longest: int | None = None
    ) -> CalibrationSize:
        """What was left open, filled in.

        Second moments of a thousand channels want more text than gradients summed over channels
        do. A token costs about as much to calibrate as to train on, so calibration takes half as
        long as the training between two cuts: `tokens_between`, None where nothing trains.
        `longest` is the text of the longest domain, in tokens.
        """
        usual = _LENGTH_FOR_MOMENTS if moments else _USUAL_LENGTH
        length = self.sequence_length or min(usual, longest or usual)
        num_tokens = _LEAST_TOKENS
        if moments:
            wanted = _MOST_TOKENS if tokens_between is None else tokens_between // 2
            num_tokens = min(max(wanted, _LEAST_TOKENS), _MOST_TOKENS)
        return CalibrationSize(
            num_samples=self.num_samples or max(1, num_tokens // length),
            sequence_length=length,
            batch_size=self.batch_size,
        )
