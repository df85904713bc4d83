"""One account per decoder layer and axis: what it may lose, in which order, and what it owes."""

from dataclasses import dataclass
from functools import cached_property

import torch

from pruning.allocation.widths import allowed_widths
from pruning.errors import InvalidPlan
from pruning.models.adapter import AXES
from pruning.models.geometry import Geometry
from pruning.plan import LayerPlan, PruningPlan
from pruning.recipe_parts.method import Axis, Constraints
from pruning.scores import LayerScores, Scores


@dataclass(frozen=True, kw_only=True)
class Account:
    """One axis of one layer.

    `kept` are the groups it has, as base-model indices, least important first: one index each, or
    for `query_head` one head of every KV group. `steps` are the widths it may be cut to,
    descending, and the first of them is `due` whatever the target when serving demands it. A group
    holds `shared_cost` less for each KV group (of `query_head`) or query head (of `kv_group`) that
    goes.
    """

    layer: int
    axis: Axis
    kept: tuple[tuple[int, ...], ...]
    importances: tuple[float, ...]
    steps: tuple[int, ...]
    group_cost: int
    shared_cost: int
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
    for index in plan.living:
        layer = plan.layers[index]
        if constraints.protects(index, len(plan.layers)):
            continue
        for axis in axes:
            if not kept_groups(layer, axis):
                continue  # Its block is gone, or has no experts.
            kept, importances = _ranked(index, axis, layer, scores.layers[index], geometry)
            accounts.append(
                Account(
                    layer=index,
                    axis=axis,
                    kept=kept,
                    importances=importances,
                    steps=_steps(axis, layer, len(kept), constraints, geometry),
                    group_cost=_group_cost(index, axis, layer, geometry),
                    shared_cost=0
                    if axis in ("intermediate", "expert")
                    else geometry.group_costs[index]["query_head"],
                    # Query heads divide as soon as their KV groups do.
                    due=axis not in ("query_head", "expert")
                    and len(kept) % constraints.tensor_parallel != 0,
                )
            )
    return accounts


def num_removable(accounts: list[Account]) -> int:
    """Parameters that go when every account is at its minimum."""
    widths = {(a.layer, a.axis): a.steps[-1] if a.steps else a.width for a in accounts}
    return num_removed(accounts, widths)


def num_removed(accounts: list[Account], widths: dict[tuple[int, Axis], int]) -> int:
    """Parameters that go with the accounts at `widths`."""
    removed = sum(a.cost_to(widths[a.layer, a.axis]) for a in accounts)
    lost = {(a.layer, a.axis): a.width - widths[a.layer, a.axis] for a in accounts}
    # Query heads of removed KV groups were counted with the groups and with the heads.
    return removed - sum(
        a.shared_cost * lost[a.layer, a.axis] * lost.get((a.layer, "kv_group"), 0)
        for a in accounts
        if a.axis == "query_head"
    )


def plan_after(
    plan: PruningPlan, accounts: list[Account], widths: dict[tuple[int, Axis], int]
) -> PruningPlan:
    """`plan` with the accounts cut to `widths`, each losing its least important groups."""
    kept = {
        (account.layer, account.axis): account.kept[
            account.width - widths[account.layer, account.axis] :
        ]
        for account in accounts
    }
    return plan.with_layers(
        _layer_after(layer, *(kept.get((index, axis)) for axis in AXES))
        for index, layer in enumerate(plan.layers)
    )


_Kept = tuple[tuple[int, ...], ...]


def _layer_after(
    layer: LayerPlan,
    intermediate: _Kept | None,
    kv_groups: _Kept | None,
    heads: _Kept | None,
    experts: _Kept | None,
) -> LayerPlan:
    groups = layer.kv_groups if kv_groups is None else tuple(sorted(g for (g,) in kv_groups))
    heads_before = layer.query_heads if heads is None else tuple(zip(*heads, strict=True))
    of_group = dict(zip(layer.kv_groups, heads_before, strict=True)) if heads_before else {}
    return LayerPlan(
        intermediate=layer.intermediate
        if intermediate is None
        else tuple(sorted(c for (c,) in intermediate)),
        kv_groups=groups,
        query_heads=tuple(tuple(sorted(of_group[g])) for g in groups) if of_group else (),
        experts=layer.experts if experts is None else tuple(sorted(e for (e,) in experts)),
    )


def kept_groups(layer: LayerPlan, axis: Axis) -> tuple[int, ...]:
    """The channels, experts or KV groups that a layer's plan keeps."""
    if axis == "expert":
        return layer.experts
    return layer.intermediate if axis == "intermediate" else layer.kv_groups


def _ranked(
    index: int, axis: Axis, layer: LayerPlan, scores: LayerScores, geometry: Geometry
) -> tuple[_Kept, tuple[float, ...]]:
    """What a layer keeps of an axis, the first to go first, and the importance of each."""
    if axis == "query_head":
        heads = geometry.kept_query_heads(index, layer)
        _check_scores(index, axis, scores.query_heads.shape, (len(heads), len(heads[0])))
        orders = [_ascending(importance) for importance in scores.query_heads]
        kept = tuple(
            tuple(of_group[order[rank]] for of_group, order in zip(heads, orders, strict=True))
            for rank in range(len(heads[0]))
        )
        sums = scores.query_heads.sort(dim=1).values.sum(dim=0)
        return kept, tuple(sums.tolist())
    groups, importance = kept_groups(layer, axis), scores.of_groups(axis)
    _check_scores(index, axis, importance.shape, (len(groups),))
    removal = scores.removals.get(axis)
    if removal is not None:
        kept_in_order = tuple((groups[i],) for i in removal.order.tolist())
        return kept_in_order, tuple(removal.costs.tolist())
    order = _ascending(importance)
    return tuple((groups[i],) for i in order), tuple(importance[order].tolist())


def _ascending(importance: torch.Tensor) -> list[int]:
    # Stable, so that ties fall to the lower index on every machine.
    return list(torch.argsort(importance, stable=True).tolist())


def _group_cost(index: int, axis: Axis, layer: LayerPlan, geometry: Geometry) -> int:
    """Parameters that one group of an axis holds today, of `query_head` one head in each group."""
    if axis == "query_head":
        return geometry.group_costs[index][axis] * len(layer.kv_groups)
    if axis == "kv_group":
        return geometry.kv_group_cost(index, geometry.heads_per_group(index, layer))
    if axis == "expert":
        return geometry.expert_cost(index, layer)
    return geometry.channel_cost(index, layer)


_EXPERT_MULTIPLE = 8
"""Of the channels of experts: torch multiplies their matrices in rows of whole 16 bytes."""


def _steps(
    axis: Axis, layer: LayerPlan, width: int, constraints: Constraints, geometry: Geometry
) -> tuple[int, ...]:
    steps = allowed_widths(axis, width, constraints)
    if axis == "intermediate" and layer.experts:
        return tuple(step for step in steps if step % _EXPERT_MULTIPLE == 0)
    if axis == "expert":
        return tuple(step for step in steps if step >= geometry.experts_per_token)
    return steps


def _check_scores(index: int, axis: Axis, found: torch.Size, expected: tuple[int, ...]) -> None:
    if tuple(found) != expected:
        raise InvalidPlan(f"layer {index}: {list(found)} scores for {list(expected)} of {axis}")


def _check_layers(scores: Scores, plan: PruningPlan, constraints: Constraints) -> None:
    num_layers = len(plan.layers)
    if len(scores.layers) != num_layers:
        raise InvalidPlan(f"scores of {len(scores.layers)} layers for a plan of {num_layers}")
    unknown = [i for i in constraints.protected_layers if not -num_layers <= i < num_layers]
    if unknown:
        raise InvalidPlan(
            f"protected layers {unknown} do not exist",
            param="allocation.constraints.protected_layers",
            hint=f"layers are 0..{num_layers - 1}, or -1..-{num_layers} from the end",
        )
