"""One account per decoder layer and axis: what it may lose, in which order, and what it owes."""

from dataclasses import dataclass
from functools import cached_property

import torch

from pruning.allocation.widths import allowed_widths
from pruning.errors import InvalidPlan
from pruning.models.adapter import kept_groups
from pruning.models.geometry import Geometry
from pruning.plan import LayerPlan, PruningPlan
from pruning.recipe import Axis, Constraints
from pruning.scores import Scores


@dataclass(frozen=True, kw_only=True)
class Account:
    """One axis of one layer.

    `kept` are the groups it has, as base-model indices, least important first; `steps` the widths
    it may be cut to, descending, and the first of them is `due` whatever the target when serving
    demands it.
    """

    layer: int
    axis: Axis
    kept: tuple[int, ...]
    importances: tuple[float, ...]
    steps: tuple[int, ...]
    group_cost: int
    due: bool

    @property
    def width(self) -> int:
        return len(self.kept)

    @property
    def num_parameters(self) -> int:
        return self.width * self.group_cost

    def cost_to(self, width: int) -> int:
        """Parameters removed by going from today's width to `width`."""
        return (self.width - width) * self.group_cost

    @cached_property
    def first_cost(self) -> int:
        """Parameters of the first step; 0 when there is none."""
        return self.cost_to(self.steps[0]) if self.steps else 0

    def density(self, before: int, after: int) -> float:
        """Importance per parameter of the groups lost between two widths."""
        lost = self.importances[self.width - before : self.width - after]
        return sum(lost) / ((before - after) * self.group_cost)


def open_accounts(
    scores: Scores,
    plan: PruningPlan,
    geometry: Geometry,
    *,
    axes: tuple[Axis, ...],
    constraints: Constraints,
) -> list[Account]:
    """The accounts that may lose something, layer by layer.

    Raises:
        InvalidPlan: scores and plan disagree, or a protected layer does not exist.
        TargetUnreachable: `tensor_parallel` cannot be met.
    """
    _check_layers(scores, plan, constraints)
    accounts: list[Account] = []
    for index, layer in enumerate(plan.layers):
        if index in constraints.protected_layers:
            continue
        for axis in axes:
            importance = scores.layers[index].groups(axis)
            kept = kept_groups(layer, axis)
            if len(importance) != len(kept):
                raise InvalidPlan(
                    f"layer {index}: {len(importance)} scores for {len(kept)} groups of {axis}"
                )
            # Stable, so that ties fall to the lower index on every machine.
            order = torch.argsort(importance, stable=True).tolist()
            accounts.append(
                Account(
                    layer=index,
                    axis=axis,
                    kept=tuple(kept[i] for i in order),
                    importances=tuple(importance[order].tolist()),
                    steps=allowed_widths(axis, len(kept), constraints),
                    group_cost=geometry.group_costs[index][axis],
                    due=len(kept) % constraints.tensor_parallel != 0,
                )
            )
    return accounts


def plan_after(
    plan: PruningPlan, accounts: list[Account], widths: dict[tuple[int, Axis], int]
) -> PruningPlan:
    """`plan` with the accounts cut to `widths`, each losing its least important groups."""
    kept = {
        (account.layer, account.axis): tuple(
            sorted(account.kept[account.width - widths[account.layer, account.axis] :])
        )
        for account in accounts
    }
    return PruningPlan(
        layers=tuple(
            LayerPlan(
                intermediate=kept.get((index, "intermediate"), layer.intermediate),
                kv_groups=kept.get((index, "kv_group"), layer.kv_groups),
            )
            for index, layer in enumerate(plan.layers)
        )
    )


def _check_layers(scores: Scores, plan: PruningPlan, constraints: Constraints) -> None:
    num_layers = len(plan.layers)
    if len(scores.layers) != num_layers:
        raise InvalidPlan(f"scores of {len(scores.layers)} layers for a plan of {num_layers}")
    unknown = [index for index in constraints.protected_layers if not 0 <= index < num_layers]
    if unknown:
        raise InvalidPlan(
            f"protected layers {unknown} do not exist",
            param="allocation.constraints.protected_layers",
            hint=f"layers are 0..{num_layers - 1}",
        )
