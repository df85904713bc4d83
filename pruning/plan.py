"""PruningPlan: which groups stay, per layer and axis, as pure data.

Allocation writes plans, surgery executes them and looks at nothing else, every checkpoint stores
one. All indices count groups of the *base* model, so a plan says where each surviving channel came
from however many increments lie between. Torch-free.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pruning.errors import InvalidPlan

Indices = Annotated[tuple[int, ...], Field(description="Kept groups, ascending.")]


def _ascending(indices: Sequence[int]) -> bool:
    return all(a < b for a, b in pairwise(indices)) and (not indices or indices[0] >= 0)


class LayerPlan(BaseModel):
    """What stays of one decoder layer.

    Without KV groups its attention block is gone, without channels its MLP block, without both the
    whole layer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    intermediate: Indices
    kv_groups: Indices
    query_heads: tuple[Indices, ...] = Field(
        (), description="Of each kept KV group, its kept query heads, counted in it; absent: all."
    )
    experts: Indices = Field((), description="Kept experts of a layer that has some, ascending.")

    @model_validator(mode="after")
    def _sorted(self) -> Self:
        for name, indices in (
            ("intermediate", self.intermediate),
            ("kv_groups", self.kv_groups),
            ("experts", self.experts),
            *(("query_heads", heads) for heads in self.query_heads),
        ):
            if not _ascending(indices):
                raise ValueError(f"{name} must be ascending group indices")
        return self

    @model_validator(mode="after")
    def _as_many_heads_in_each_group(self) -> Self:
        """Attention repeats each KV head for one number of query heads."""
        if self.query_heads and (
            len(self.query_heads) != len(self.kv_groups)
            or len({len(heads) for heads in self.query_heads}) > 1
        ):
            raise ValueError("query_heads must name as many heads for each of kv_groups")
        return self


GONE = LayerPlan(intermediate=(), kv_groups=())
"""A layer that is removed whole, its norms with it."""


class PruningPlan(BaseModel):
    """What stays of a model: one `LayerPlan` per decoder layer of the base model, in order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: tuple[LayerPlan, ...]
    hidden: Indices | None = Field(
        None, description="Kept channels of the residual stream, ascending; absent: all."
    )

    @model_validator(mode="after")
    def _sorted(self) -> Self:
        if self.hidden is not None and not (self.hidden and _ascending(self.hidden)):
            raise ValueError("hidden must be ascending channel indices, at least one")
        return self

    @classmethod
    def keep_all(cls, *, num_layers: int, intermediate_size: int, num_kv_groups: int) -> Self:
        """The plan of the unpruned model."""
        layer = LayerPlan(
            intermediate=tuple(range(intermediate_size)), kv_groups=tuple(range(num_kv_groups))
        )
        return cls(layers=(layer,) * num_layers)

    @property
    def living(self) -> tuple[int, ...]:
        """The layers that stay, as base-model indices, in the order the model has them."""
        return tuple(index for index, layer in enumerate(self.layers) if layer != GONE)

    def relative_to(self, previous: "PruningPlan") -> "PruningPlan":
        """This plan with each index counted in the model that `previous` left.

        Raises:
            InvalidPlan: this plan keeps a group that `previous` had removed.
        """
        if len(self.layers) != len(previous.layers):
            raise InvalidPlan(
                f"plan has {len(self.layers)} layers, the plan before it {len(previous.layers)}"
            )
        return PruningPlan(
            hidden=_hidden_positions(self.hidden, previous.hidden),
            layers=tuple(
                LayerPlan(
                    intermediate=_positions(now.intermediate, before.intermediate, index),
                    kv_groups=_positions(now.kv_groups, before.kv_groups, index),
                    query_heads=_head_positions(now, before, index),
                    experts=_positions(now.experts, before.experts, index),
                )
                for index, (now, before) in enumerate(
                    zip(self.layers, previous.layers, strict=True)
                )
            ),
        )

    def with_layers(self, layers: Iterable[LayerPlan]) -> Self:
        """The same plan with other layers."""
        return self.model_copy(update={"layers": tuple(layers)})


def _head_positions(now: LayerPlan, before: LayerPlan, layer: int) -> tuple[Indices, ...]:
    if now == GONE or not before.query_heads:
        return now.query_heads
    if not now.query_heads:
        raise InvalidPlan(
            f"layer {layer}: keeps all query heads, of which some were removed before"
        )
    heads_before = dict(zip(before.kv_groups, before.query_heads, strict=True))
    return tuple(
        _positions(heads, heads_before[group], layer)
        for group, heads in zip(now.kv_groups, now.query_heads, strict=True)
    )


def _hidden_positions(now: Indices | None, before: Indices | None) -> Indices | None:
    if before is None:
        return now
    if now is None:
        raise InvalidPlan("keeps all hidden channels, of which some were removed before")
    return _positions(now, before, None)


def _positions(kept: Indices, before: Indices, layer: int | None) -> Indices:
    position = {group: i for i, group in enumerate(before)}
    missing = [group for group in kept if group not in position]
    if missing:
        where = "hidden" if layer is None else f"layer {layer}"
        raise InvalidPlan(f"{where}: keeps groups {missing[:5]} that were removed before")
    return tuple(position[group] for group in kept)
