"""From importance and a target to a plan: who loses how much, and what is owed to next time."""

from pruning.allocation.accounts import Account, num_removable, open_accounts, plan_after
from pruning.allocation.debt import Debt, LayerDebt
from pruning.allocation.depth import DEPTH_AXES, drop_pieces
from pruning.allocation.equal_marginal import cheapest_same_widths, cheapest_widths
from pruning.allocation.hidden import balanced_widths, keep_hidden, narrow_stream
from pruning.allocation.per_layer import open_ledgers, pay_down, settle
from pruning.allocation.rates import AXIS_RATES, fluctuations, layer_adaptive_rates
from pruning.allocation.retained import retaining_widths
from pruning.allocation.same_width import SharedAccount, same_widths, share
from pruning.allocation.shapes import shape_plan
from pruning.allocation.zscore import axis_rates, standout_widths
from pruning.errors import TargetUnreachable
from pruning.models.geometry import Geometry
from pruning.plan import PruningPlan
from pruning.recipe_parts.method import Allocation, Axis
from pruning.recipe_parts.target import Shape
from pruning.scores import Scores

Owed = dict[tuple[int, Axis], float]


def allocate(
    scores: Scores,
    plan: PruningPlan,
    geometry: Geometry,
    *,
    target_num_parameters: int,
    allocation: Allocation,
    axes: tuple[Axis, ...] = ("intermediate", "kv_group"),
    shape: Shape | None = None,
    debt: Debt | None = None,
) -> tuple[PruningPlan, Debt]:
    """The next plan, and the debt to pass to the allocation after it.

    `plan` is where the model is now, `scores` were measured there, `debt` is None before the first
    cut. The result has at most `target_num_parameters`, and falls short of it by less than the
    finest step that the constraints still allow. A model already at the target keeps its plan. On
    the way to a `shape`, all layers stay alike, and the shape alone decides what goes.

    Raises:
        TargetUnreachable: the constraints leave more than the target; the message names the floor.
        InvalidPlan: scores, plan and constraints contradict each other.
    """
    scores = scores.over(plan)
    geometry = geometry.narrowed(plan)
    if shape is not None:
        on_the_way = shape_plan(scores, plan, geometry, shape=shape, target=target_num_parameters)
        return on_the_way, Debt.none(len(plan.layers))
    if axes[0] in DEPTH_AXES:
        kept = drop_pieces(
            scores,
            plan,
            geometry,
            axes=axes,
            target=target_num_parameters,
            constraints=allocation.constraints,
        )
        return kept, Debt.none(len(plan.layers))
    if axes == ("hidden",):
        narrow = narrow_stream(
            scores,
            plan,
            geometry,
            target=target_num_parameters,
            constraints=allocation.constraints,
        )
        return narrow, Debt.none(len(plan.layers))
    narrow_all = _narrow_stream_and_layers if "hidden" in axes else _narrow_layers
    return narrow_all(
        scores,
        plan,
        geometry,
        target=target_num_parameters,
        allocation=allocation,
        axes=tuple(axis for axis in axes if axis != "hidden"),
        debt=debt,
    )


def _narrow_stream_and_layers(
    scores: Scores,
    plan: PruningPlan,
    geometry: Geometry,
    *,
    target: int,
    allocation: Allocation,
    axes: tuple[Axis, ...],
    debt: Debt | None,
) -> tuple[PruningPlan, Debt]:
    """First the stream loses its share, then the layers what is left to the target."""
    if geometry.num_parameters(plan) <= target:
        return plan, debt or Debt.none(len(plan.layers))
    widths = balanced_widths(
        plan,
        geometry,
        target=target,
        constraints=allocation.constraints,
        owed=0.0 if debt is None else debt.hidden,
    )
    for width, owed in widths:
        narrow = keep_hidden(scores, plan, width)
        try:
            found, left = _narrow_layers(
                scores,
                narrow,
                geometry.narrowed(narrow),
                target=target,
                allocation=allocation,
                axes=axes,
                debt=debt,
            )
        except TargetUnreachable:
            if width == widths[-1][0]:
                raise
            continue
        return found, left.model_copy(update={"hidden": owed})
    raise AssertionError("there is always today's width")


def _narrow_layers(
    scores: Scores,
    plan: PruningPlan,
    geometry: Geometry,
    *,
    target: int,
    allocation: Allocation,
    axes: tuple[Axis, ...],
    debt: Debt | None,
) -> tuple[PruningPlan, Debt]:
    """What every account loses on the way to `target`."""
    accounts = open_accounts(scores, plan, geometry, axes=axes, constraints=allocation.constraints)
    num_parameters = geometry.num_parameters(plan)
    excess = num_parameters - target
    _check_reachable(accounts, num_parameters, target)
    owed = _opening(accounts) if debt is None else _carried(accounts, debt)
    if excess <= 0 and not any(account.due for account in accounts):
        return plan, _debt(owed, len(plan.layers))
    if allocation.kind == "equal_marginal":
        widths = _pay_cheapest(accounts, excess, allocation, len(plan.living))
        return plan_after(plan, accounts, widths), Debt.none(len(plan.layers))
    if allocation.kind in ("global_zscore", "energy"):
        widths = (
            retaining_widths(accounts, excess)
            if allocation.kind == "energy"
            else standout_widths(accounts, scores, excess)
        )
        if allocation.layout == "uniform":
            widths = _evened(accounts, widths, excess)
        return plan_after(plan, accounts, widths), Debt.none(len(plan.layers))
    rates = _rates(accounts, scores, allocation)
    if allocation.layout == "uniform":
        shared = share(accounts, rates, len(plan.living))
        widths, owed = _pay_together(accounts, shared, excess, owed)
    else:
        widths, owed = _pay_apart(accounts, rates, excess, owed)
    return plan_after(plan, accounts, widths), _debt(owed, len(plan.layers))


def _check_reachable(accounts: list[Account], num_parameters: int, target: int) -> None:
    removable = num_removable(accounts)
    if num_parameters - removable > target:
        raise TargetUnreachable(
            f"the constraints leave at least {num_parameters - removable:,} parameters, "
            f"the target is {target:,}",
            param="target",
            hint="raise the target, or lower minimum widths and protect fewer layers",
        )


def _rates(accounts: list[Account], scores: Scores, allocation: Allocation) -> list[float]:
    axes = {account.axis for account in accounts}
    # Two axes that share the attention's parameters share its sparsity.
    halves: dict[Axis, float] = {"kv_group": 0.5, "query_head": 0.5}
    portions = halves if set(halves) <= axes else {}
    if allocation.kind == "uniform":
        return [portions.get(account.axis, 1.0) for account in accounts]
    adaptive = allocation.kind == "layer_adaptive"
    rates: dict[tuple[int, Axis], float] = {}
    for axis in axes:
        blocks = [account for account in accounts if account.axis == axis]
        spread = layer_adaptive_rates(
            [scores.layers[block.layer].block_importance(axis) for block in blocks]
            if adaptive
            else fluctuations([block.importances for block in blocks]),
            [float(block.num_parameters) for block in blocks],
            allocation.amplitude,
        )
        pace = AXIS_RATES[axis] if adaptive else 1.0
        for block, rate in zip(blocks, spread, strict=True):
            rates[block.layer, axis] = rate * pace * portions.get(axis, 1.0)
    return [rates[account.layer, account.axis] for account in accounts]


def _pay_cheapest(
    accounts: list[Account], excess: int, allocation: Allocation, num_layers: int
) -> dict[tuple[int, Axis], int]:
    if allocation.layout == "per_layer":
        return cheapest_widths(accounts, excess)
    shared = share(accounts, [1.0] * len(accounts), num_layers)
    common = cheapest_same_widths(shared, excess)
    if common is None:
        raise _no_common_width(excess)
    return {(account.layer, account.axis): common[account.axis] for account in accounts}


def _evened(
    accounts: list[Account], widths: dict[tuple[int, Axis], int], excess: int
) -> dict[tuple[int, Axis], int]:
    """One width for each axis, which loses over all layers what `widths` took from it."""
    shared = share(accounts, axis_rates(accounts, widths), len({a.layer for a in accounts}))
    nothing = {(account.layer, account.axis): 0.0 for account in accounts}
    common, _ = _pay_together(accounts, shared, excess, nothing)
    return common


def _no_common_width(excess: int) -> TargetUnreachable:
    return TargetUnreachable(
        f"no common width removes {excess:,} parameters", param="allocation.layout"
    )


def _pay_apart(
    accounts: list[Account], rates: list[float], excess: int, owed: Owed
) -> tuple[dict[tuple[int, Axis], int], Owed]:
    ledgers = open_ledgers(accounts, rates, owed)
    pay_down(ledgers, excess)
    keys = [(account.layer, account.axis) for account in accounts]
    widths = {key: ledger.width for key, ledger in zip(keys, ledgers, strict=True)}
    return widths, dict(zip(keys, settle(ledgers), strict=True))


def _pay_together(
    accounts: list[Account], shared: list[SharedAccount], excess: int, owed: Owed
) -> tuple[dict[tuple[int, Axis], int], Owed]:
    owed_by_axis = {
        part.axis: sum(owed[account.layer, part.axis] for account in part.accounts)
        for part in shared
    }
    widths = same_widths(shared, excess=excess, owed=owed_by_axis)
    if widths is None:
        raise _no_common_width(excess)
    removed = sum(part.cost_to(widths[part.axis]) for part in shared)
    sparsity = removed / sum(part.allotment for part in shared)
    rates = {part.axis: part.rate for part in shared}
    left = {
        (account.layer, account.axis): owed[account.layer, account.axis]
        + sparsity * rates[account.axis] * account.num_parameters
        - account.cost_to(widths[account.axis])
        for account in accounts
    }
    return {(account.layer, account.axis): widths[account.axis] for account in accounts}, left


def _opening(accounts: list[Account]) -> Owed:
    """Before the first cut: staggered parts of one step, most where least would be lost.

    Layers of the same rate would otherwise all lose a KV group at the same moment, a cliff from
    which small models do not recover. On average half a step, so that whole steps round to the
    nearest.
    """
    owed: Owed = {}
    for axis in {account.axis for account in accounts}:
        able = [account for account in accounts if account.axis == axis and account.steps]
        able.sort(key=lambda account: account.density(account.width, account.steps[0]))
        for rank, account in enumerate(able):
            share_of_step = 1 - (rank + 0.5) / len(able)
            owed[account.layer, axis] = share_of_step * account.first_cost
    return {
        (account.layer, account.axis): owed.get((account.layer, account.axis), 0.0)
        for account in accounts
    }


def _carried(accounts: list[Account], debt: Debt) -> Owed:
    return {
        (account.layer, account.axis): debt.layers[account.layer].of(account.axis)
        for account in accounts
    }


def _debt(owed: Owed, num_layers: int) -> Debt:
    return Debt(
        layers=tuple(
            LayerDebt(
                intermediate=owed.get((index, "intermediate"), 0.0),
                kv_group=owed.get((index, "kv_group"), 0.0),
                query_head=owed.get((index, "query_head"), 0.0),
                expert=owed.get((index, "expert"), 0.0),
            )
            for index in range(num_layers)
        )
    )
