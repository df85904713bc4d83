"""What each layer still owes: sparsity it was allotted but could not pay in whole groups."""

from typing import Self

from pydantic import BaseModel, ConfigDict

from pruning.recipe_parts.method import Axis


class LayerDebt(BaseModel):
    """Parameters owed by one decoder layer, per axis; negative when it paid ahead."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    intermediate: float = 0.0
    kv_group: float = 0.0
    query_head: float = 0.0
    expert: float = 0.0

    def of(self, axis: Axis) -> float:
        owed: float = getattr(self, axis)
        return owed


class Debt(BaseModel):
    """Carried from increment to increment and stored with every checkpoint.

    Without it a KV group, a third of a small layer's attention, would never come due in an
    increment that removes a few percent, and attention would be left whole however many increments
    follow.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: tuple[LayerDebt, ...]
    hidden: float = 0.0
    """Channels of the residual stream, which goes in steps of many."""

    @classmethod
    def none(cls, num_layers: int) -> Self:
        """Of a run that has not cut yet."""
        return cls(layers=(LayerDebt(),) * num_layers)
