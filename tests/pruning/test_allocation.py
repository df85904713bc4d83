"""Allocation: exact targets, honoured constraints, carried debt, over models of many sizes."""

import dataclasses
import math
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning.allocation.allocate import allocate
from pruning.allocation.debt import Debt
from pruning.allocation.rates import fluctuations, layer_adaptive_rates, normalise
from pruning.allocation.zscore import zscores
from pruning.errors import InvalidPlan, TargetUnreachable
from pruning.models.adapter import AXES
from pruning.models.geometry import Geometry
from pruning.plan import PruningPlan
from pruning.recipe_parts.method import Allocation, AllocationKind, Axis, Constraints, Layout
from pruning.scores import LayerScores, Scores

HIDDEN, HEAD = 64, 16
FREE = Constraints(width_multiple=1, min_intermediate_size=1)


def make_geometry(*, layers: int, query_heads_per_group: int = 3, fixed: int = 10_000) -> Geometry:
    costs = {
        "intermediate": 3 * HIDDEN,
        "kv_group": HEAD * HIDDEN * (2 * query_heads_per_group + 2),
        "query_head": HEAD * HIDDEN * 2,
    }
    return Geometry(fixed, (costs,) * layers, (query_heads_per_group,) * layers, (0,) * layers)


def make_scores(plan: PruningPlan, *, seed: int = 0, query_heads_per_group: int = 3) -> Scores:
    """Random importances of the groups that `plan` keeps; the first layer is an outlier."""
    heads = query_heads_per_group
    generator = torch.Generator().manual_seed(seed)
    return Scores(
        tuple(
            LayerScores(
                intermediate=torch.rand(len(layer.intermediate), generator=generator),
                kv_groups=10 * torch.rand(len(layer.kv_groups), generator=generator),
                query_heads=torch.rand(
                    len(layer.kv_groups),
                    len(layer.query_heads[0]) if layer.query_heads else heads,
                    generator=generator,
                ),
                attention_importance=(100 if i == 0 else 1) * 0.01 * (1 + i % 5),
                mlp_importance=(100 if i == 0 else 1) * 0.01 * (1 + i % 3),
            )
            for i, layer in enumerate(plan.layers)
        )
    )


def whole(*, layers: int, intermediate: int, kv_groups: int) -> PruningPlan:
    return PruningPlan.keep_all(
        num_layers=layers, intermediate_size=intermediate, num_kv_groups=kv_groups
    )


def prunable(geometry: Geometry, plan: PruningPlan) -> int:
    return geometry.num_parameters(plan) - geometry.num_fixed_parameters


def without_channels(
    number: int, scores: Scores, plan: PruningPlan, geometry: Geometry, *, kind: AllocationKind
) -> PruningPlan:
    """`plan` with so many MLP channels less, chosen over all layers."""
    pruned, _ = allocate(
        scores,
        plan,
        geometry,
        target_num_parameters=geometry.num_parameters(plan)
        - number * geometry.group_costs[0]["intermediate"],
        allocation=Allocation(kind=kind, constraints=FREE),
        axes=("intermediate",),
    )
    return pruned


def removed_by_axis(geometry: Geometry, before: PruningPlan, after: PruningPlan) -> dict[str, int]:
    costs = geometry.group_costs[0]
    return {
        "intermediate": costs["intermediate"]
        * sum(
            len(b.intermediate) - len(a.intermediate)
            for b, a in zip(before.layers, after.layers, strict=True)
        ),
        "kv_group": costs["kv_group"]
        * sum(
            len(b.kv_groups) - len(a.kv_groups)
            for b, a in zip(before.layers, after.layers, strict=True)
        ),
    }


sizes = st.fixed_dictionaries(
    {
        "layers": st.integers(1, 6),
        "intermediate": st.integers(1, 96),
        "kv_groups": st.sampled_from([1, 2, 3, 5, 8]),
    }
)
constraint_sets = st.builds(
    Constraints,
    width_multiple=st.sampled_from([1, 4, 16]),
    min_intermediate_size=st.integers(1, 20),
    min_kv_groups=st.integers(1, 3),
    min_query_heads_per_group=st.integers(1, 3),
)
allocations = st.builds(
    Allocation,
    kind=st.sampled_from(get_args(AllocationKind)),
    amplitude=st.floats(0, 1),
    constraints=constraint_sets,
)
axis_sets = st.sampled_from(
    [("intermediate", "kv_group"), ("intermediate", "query_head"), AXES, ("query_head",)]
)


@settings(deadline=None, max_examples=150)
@given(sizes, allocations, axis_sets, st.floats(0, 1), st.integers(0, 99))
def test_the_target_is_met_to_within_the_finest_step_left(
    size: dict[str, int], allocation: Allocation, axes: tuple[Axis, ...], share: float, seed: int
) -> None:
    plan = whole(**size)
    geometry = make_geometry(layers=size["layers"])
    target = geometry.num_parameters(plan) - round(share * prunable(geometry, plan))
    try:
        pruned, _ = allocate(
            make_scores(plan, seed=seed),
            plan,
            geometry,
            target_num_parameters=target,
            allocation=allocation,
            axes=axes,
        )
    except TargetUnreachable:
        return
    finest = max(geometry.group_costs[0]["kv_group"], size["kv_groups"] * 2 * HEAD * HIDDEN)
    if "intermediate" in axes and any(
        len(layer.intermediate) < size["intermediate"] for layer in pruned.layers
    ):
        finest = geometry.group_costs[0]["intermediate"] * allocation.constraints.width_multiple
    assert target - finest < geometry.num_parameters(pruned) <= target


@settings(deadline=None, max_examples=150)
@given(sizes, allocations, axis_sets, st.floats(0, 1), st.integers(0, 99))
def test_constraints_hold_and_plans_only_shrink(
    size: dict[str, int], allocation: Allocation, axes: tuple[Axis, ...], share: float, seed: int
) -> None:
    plan = whole(**size)
    geometry = make_geometry(layers=size["layers"])
    limits = allocation.constraints
    try:
        pruned, _ = allocate(
            make_scores(plan, seed=seed),
            plan,
            geometry,
            target_num_parameters=geometry.num_parameters(plan)
            - round(share * prunable(geometry, plan)),
            allocation=allocation,
            axes=axes,
        )
    except TargetUnreachable:
        return
    pruned.relative_to(plan)
    for layer in pruned.layers:
        width, groups = len(layer.intermediate), len(layer.kv_groups)
        cut_well = width % limits.width_multiple == 0 and width >= limits.min_intermediate_size
        assert width == size["intermediate"] or cut_well
        assert groups == size["kv_groups"] or groups >= limits.min_kv_groups
        assert width >= 1
        assert groups >= 1
        heads = geometry.heads_per_group(0, layer)
        assert heads == 3 or heads >= limits.min_query_heads_per_group >= 1


@pytest.mark.parametrize("kv_groups", [1, 2, 5, 8])
@pytest.mark.parametrize("percent", range(95, 25, -10))
def test_targets_from_95_to_30_percent_are_met_to_within_one_channel(
    kv_groups: int, percent: int
) -> None:
    plan = whole(layers=4, intermediate=96, kv_groups=kv_groups)
    geometry = make_geometry(layers=4, fixed=0)
    target = geometry.num_parameters(plan) * percent // 100
    try:
        pruned, _ = allocate(
            make_scores(plan),
            plan,
            geometry,
            target_num_parameters=target,
            allocation=Allocation(constraints=FREE),
        )
    except TargetUnreachable:
        # One KV head per layer cannot go: attention alone is then more than the target.
        assert kv_groups == 1
        return
    assert target - geometry.group_costs[0]["intermediate"] < geometry.num_parameters(pruned)
    assert geometry.num_parameters(pruned) <= target


@pytest.mark.parametrize("num_increments", [1, 4, 20])
def test_attention_loses_its_share_however_many_increments(num_increments: int) -> None:
    plan = base = whole(layers=10, intermediate=512, kv_groups=3)
    geometry = make_geometry(layers=10)
    start, total = geometry.num_parameters(plan), prunable(geometry, plan)
    debt: Debt | None = None
    for increment in range(1, num_increments + 1):
        plan, debt = allocate(
            make_scores(plan, seed=increment),
            plan,
            geometry,
            target_num_parameters=start - round(0.4 * total * increment / num_increments),
            allocation=Allocation(kind="uniform", constraints=FREE),
            debt=debt,
        )
    removed = removed_by_axis(geometry, base, plan)
    attention = 10 * 3 * geometry.group_costs[0]["kv_group"]
    assert removed["kv_group"] / attention == pytest.approx(0.4, abs=0.05)
    assert removed["intermediate"] / (total - attention) == pytest.approx(0.4, abs=0.05)


def test_no_increment_takes_a_kv_group_from_most_layers_at_once() -> None:
    plan = whole(layers=30, intermediate=512, kv_groups=3)
    geometry = make_geometry(layers=30)
    start, total, debt = geometry.num_parameters(plan), prunable(geometry, plan), None
    for increment in range(1, 9):
        before = plan
        plan, debt = allocate(
            make_scores(plan, seed=increment),
            plan,
            geometry,
            target_num_parameters=start - round(0.05 * total * increment),
            allocation=Allocation(kind="uniform", constraints=FREE),
            debt=debt,
        )
        losing = sum(
            len(b.kv_groups) > len(a.kv_groups)
            for b, a in zip(before.layers, plan.layers, strict=True)
        )
        assert losing <= 10


def test_debts_do_not_grow_over_increments() -> None:
    plan = whole(layers=6, intermediate=200, kv_groups=3)
    geometry = make_geometry(layers=6)
    start, total, debt = geometry.num_parameters(plan), prunable(geometry, plan), None
    for increment in range(1, 21):
        plan, debt = allocate(
            make_scores(plan, seed=increment),
            plan,
            geometry,
            target_num_parameters=start - round(0.03 * total * increment),
            allocation=Allocation(constraints=FREE),
            debt=debt,
        )
        largest = max(max(abs(layer.intermediate), abs(layer.kv_group)) for layer in debt.layers)
        assert largest < 3 * geometry.group_costs[0]["kv_group"]


def test_each_layer_loses_its_least_important_groups() -> None:
    plan = whole(layers=3, intermediate=50, kv_groups=4)
    geometry, scores = make_geometry(layers=3), make_scores(plan)
    pruned, _ = allocate(
        scores,
        plan,
        geometry,
        target_num_parameters=geometry.num_parameters(plan) - prunable(geometry, plan) // 3,
        allocation=Allocation(constraints=FREE),
    )
    for layer, score in zip(pruned.layers, scores.layers, strict=True):
        lost = set(range(50)) - set(layer.intermediate)
        highest_lost = max((score.intermediate[i].item() for i in lost), default=0.0)
        assert highest_lost <= min(score.intermediate[i].item() for i in layer.intermediate)


def test_more_important_blocks_lose_less() -> None:
    plan = whole(layers=6, intermediate=300, kv_groups=1)
    geometry, scores = make_geometry(layers=6), make_scores(plan)
    pruned, _ = allocate(
        scores,
        plan,
        geometry,
        target_num_parameters=geometry.num_parameters(plan) - prunable(geometry, plan) // 4,
        allocation=Allocation(amplitude=0.8, constraints=FREE),
    )
    pairs = [
        (score.mlp_importance, len(layer.intermediate))
        for score, layer in zip(scores.layers, pruned.layers, strict=True)
    ]
    assert all(a[1] <= b[1] for a in pairs for b in pairs if a[0] < b[0])
    assert len({width for _, width in pairs}) > 1


def test_protected_layers_lose_nothing() -> None:
    plan = whole(layers=4, intermediate=64, kv_groups=4)
    geometry = make_geometry(layers=4)
    pruned, _ = allocate(
        make_scores(plan),
        plan,
        geometry,
        target_num_parameters=geometry.num_parameters(plan) - prunable(geometry, plan) // 3,
        allocation=Allocation(constraints=Constraints(width_multiple=8, protected_layers=(0, 3))),
    )
    assert (pruned.layers[0], pruned.layers[3]) == (plan.layers[0], plan.layers[3])


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_every_width_divides_by_tensor_parallel(share: float) -> None:
    plan = whole(layers=4, intermediate=90, kv_groups=5)
    geometry = make_geometry(layers=4)
    pruned, _ = allocate(
        make_scores(plan),
        plan,
        geometry,
        target_num_parameters=geometry.num_parameters(plan)
        - round(share * prunable(geometry, plan)),
        allocation=Allocation(constraints=Constraints(width_multiple=6, tensor_parallel=4)),
    )
    for layer in pruned.layers:
        assert len(layer.intermediate) % 12 == 0
        assert len(layer.kv_groups) % 4 == 0


def test_uniform_layout_gives_every_layer_the_same_widths() -> None:
    plan = whole(layers=5, intermediate=128, kv_groups=4)
    geometry = make_geometry(layers=5)
    target = geometry.num_parameters(plan) - round(0.4 * prunable(geometry, plan))
    pruned, _ = allocate(
        make_scores(plan),
        plan,
        geometry,
        target_num_parameters=target,
        allocation=Allocation(layout="uniform", constraints=Constraints(width_multiple=4)),
    )
    assert len(set(geometry.widths(pruned))) == 1
    one_step = 5 * 4 * geometry.group_costs[0]["intermediate"]
    assert target - one_step < geometry.num_parameters(pruned) <= target
    removed = removed_by_axis(geometry, plan, pruned)
    assert removed["kv_group"] > 0
    assert removed["intermediate"] > 0


def test_the_target_already_met_keeps_the_plan() -> None:
    plan = whole(layers=2, intermediate=32, kv_groups=2)
    geometry = make_geometry(layers=2)
    pruned, _ = allocate(
        make_scores(plan),
        plan,
        geometry,
        target_num_parameters=geometry.num_parameters(plan),
        allocation=Allocation(),
    )
    assert pruned == plan


def test_an_unreachable_target_names_the_floor() -> None:
    plan = whole(layers=2, intermediate=64, kv_groups=2)
    geometry = make_geometry(layers=2)
    floor = geometry.num_fixed_parameters + 2 * (
        32 * geometry.group_costs[0]["intermediate"] + geometry.group_costs[0]["kv_group"]
    )
    with pytest.raises(TargetUnreachable, match=f"at least {floor:,} parameters"):
        allocate(
            make_scores(plan),
            plan,
            geometry,
            target_num_parameters=floor - 1,
            allocation=Allocation(),
        )


def test_a_protected_layer_that_does_not_exist_is_refused() -> None:
    plan = whole(layers=2, intermediate=64, kv_groups=2)
    with pytest.raises(InvalidPlan, match="protected layers"):
        allocate(
            make_scores(plan),
            plan,
            make_geometry(layers=2),
            target_num_parameters=0,
            allocation=Allocation(constraints=Constraints(protected_layers=(7,))),
        )


@settings(deadline=None)
@given(st.lists(st.floats(0, 2), min_size=1, max_size=40), st.floats(0, 1))
def test_rates_are_bounded_and_average_to_one(importances: list[float], amplitude: float) -> None:
    rates = layer_adaptive_rates(importances, [1.0] * len(importances), amplitude)
    assert sum(rates) / len(rates) == pytest.approx(1)
    assert all(1 - amplitude - 1e-9 <= rate <= 1 + amplitude + 1e-9 for rate in rates)


def test_fluctuation_takes_less_from_blocks_whose_importance_varies() -> None:
    steady, varied = [1.0, 1.1, 0.9, 1.0], [0.1, 2.0, 0.2, 1.7]
    assert fluctuations([steady, varied])[0] < 1 < fluctuations([steady, varied])[1]
    plan = whole(layers=2, intermediate=64, kv_groups=4)
    layers = tuple(
        LayerScores(
            intermediate=torch.tensor(values * 16),
            kv_groups=torch.ones(4),
            query_heads=torch.ones(4, 3) / 3,
            attention_importance=1.0,
            mlp_importance=1.0,
        )
        for values in (steady, varied)
    )
    geometry = make_geometry(layers=2)
    after, _ = allocate(
        Scores(layers),
        plan,
        geometry,
        target_num_parameters=round(geometry.num_parameters(plan) * 0.8),
        allocation=Allocation(kind="fluctuation", amplitude=0.5, constraints=FREE),
        axes=("intermediate",),
    )
    assert len(after.layers[0].intermediate) < len(after.layers[1].intermediate)


def test_one_outlier_does_not_flatten_the_others() -> None:
    ordinary = [0.01 * (1 + i / 10) for i in range(10)]
    values = normalise([10.0, *ordinary], [1.0] * 11)
    assert values[0] == pytest.approx(1)
    assert max(values[1:]) - min(values[1:]) > 0.4


def test_layer_adaptive_takes_channels_before_kv_groups() -> None:
    plan = whole(layers=10, intermediate=512, kv_groups=3)
    geometry = make_geometry(layers=10)
    total = prunable(geometry, plan)
    pruned, _ = allocate(
        make_scores(plan),
        plan,
        geometry,
        target_num_parameters=geometry.num_parameters(plan) - total // 5,
        allocation=Allocation(kind="layer_adaptive", constraints=FREE),
    )
    removed = removed_by_axis(geometry, plan, pruned)
    attention = 10 * 3 * geometry.group_costs[0]["kv_group"]
    assert 0 < removed["kv_group"] / attention < removed["intermediate"] / (total - attention) / 2


def test_each_group_loses_its_own_least_important_query_heads() -> None:
    plan = whole(layers=3, intermediate=64, kv_groups=4)
    geometry, scores = make_geometry(layers=3), make_scores(plan)
    pruned, _ = allocate(
        scores,
        plan,
        geometry,
        target_num_parameters=geometry.num_parameters(plan)
        - 3 * 4 * geometry.group_costs[0]["query_head"],
        allocation=Allocation(kind="uniform"),
        axes=("query_head",),
    )
    for layer, score in zip(pruned.layers, scores.layers, strict=True):
        for group, kept in enumerate(layer.query_heads):
            assert len(kept) == 2
            lost = ({0, 1, 2} - set(kept)).pop()
            assert lost == score.query_heads[group].argmin().item()


@pytest.mark.parametrize("layout", ["per_layer", "uniform"])
def test_increments_of_all_three_axes_each_meet_their_target(layout: Layout) -> None:
    plan = whole(layers=6, intermediate=256, kv_groups=4)
    geometry = make_geometry(layers=6)
    start, total, debt = geometry.num_parameters(plan), prunable(geometry, plan), None
    for increment in range(1, 7):
        target = start - round(0.1 * total * increment)
        plan, debt = allocate(
            make_scores(plan, seed=increment),
            plan,
            geometry,
            target_num_parameters=target,
            allocation=Allocation(kind="uniform", layout=layout, constraints=FREE),
            axes=AXES,
            debt=debt,
        )
        step = geometry.group_costs[0]["intermediate"] * (6 if layout == "uniform" else 1)
        assert target - step < geometry.num_parameters(plan) <= target
    widths = geometry.widths(plan)
    assert {w.num_attention_heads // w.num_key_value_heads for w in widths} & {1, 2}
    assert layout == "per_layer" or len(set(widths)) == 1


def test_zscores_take_the_groups_that_stand_out_least_wherever_they_are() -> None:
    plan = whole(layers=2, intermediate=40, kv_groups=1)
    geometry, scores = make_geometry(layers=2), make_scores(plan)
    # A thousand times as large, and half of the groups far below the others.
    lopsided = torch.cat([torch.rand(20), 100 + torch.rand(20)]) * 1000
    scores = Scores(
        (scores.layers[0], dataclasses.replace(scores.layers[1], intermediate=lopsided))
    )
    pruned = without_channels(20, scores, plan, geometry, kind="global_zscore")
    standing = [
        (layer, index, value)
        for layer in (0, 1)
        for index, value in enumerate(
            zscores(tuple(scores.layers[layer].intermediate.tolist()), None)
        )
    ]
    lowest = sorted(standing, key=lambda item: item[2])[:20]
    lost = {
        (i, c)
        for i, layer in enumerate(pruned.layers)
        for c in set(range(40)) - set(layer.intermediate)
    }
    assert lost == {(layer, index) for layer, index, _ in lowest}


def test_a_head_is_standardised_by_the_deviation_of_its_channels() -> None:
    """FLAP's heads are means of standardised channels, so they stand out less than channels do."""
    channels = torch.rand(3, 8)
    deviation = 8 * channels.std(correction=0).item()
    heads = tuple(channels.sum(dim=1).tolist())
    standardised = (channels - channels.mean()) / channels.std(correction=0)
    assert zscores(heads, deviation) == pytest.approx(standardised.mean(dim=1).tolist(), abs=1e-5)


@settings(deadline=None)
@given(st.floats(0, 0.8), st.integers(0, 99))
def test_energy_leaves_every_layer_as_narrow_as_one_share_of_its_importance_lets(
    sparsity: float, seed: int
) -> None:
    plan = whole(layers=4, intermediate=64, kv_groups=1)
    geometry, scores = make_geometry(layers=4), make_scores(plan, seed=seed)
    pruned = without_channels(round(sparsity * 4 * 64), scores, plan, geometry, kind="energy")
    kept, without_one = [], []
    for layer, score in zip(pruned.layers, scores.layers, strict=True):
        importance = score.intermediate / score.intermediate.sum()
        found = importance[list(layer.intermediate)]
        assert found.min() >= importance.sort(descending=True).values[len(found) - 1]
        kept.append(found.sum().item())
        without_one.append((found.sum() - found.min()).item())
    assert min(kept) >= max(without_one) - 1e-6


def test_energy_counts_nothing_that_may_not_go() -> None:
    plan = whole(layers=2, intermediate=64, kv_groups=1)
    geometry, scores = make_geometry(layers=2), make_scores(plan)
    importance = torch.cat([torch.arange(1.0, 61.0), torch.full((4,), math.inf)])
    scores = Scores(tuple(dataclasses.replace(s, intermediate=importance) for s in scores.layers))
    pruned = without_channels(20, scores, plan, geometry, kind="energy")
    assert [len(layer.intermediate) for layer in pruned.layers] == [54, 54]


@pytest.mark.parametrize("kind", ["global_zscore", "equal_marginal", "energy"])
def test_a_uniform_layout_is_open_to_global_rankings(kind: AllocationKind) -> None:
    plan = whole(layers=4, intermediate=128, kv_groups=4)
    geometry = make_geometry(layers=4)
    target = geometry.num_parameters(plan) - round(0.3 * prunable(geometry, plan))
    pruned, _ = allocate(
        make_scores(plan),
        plan,
        geometry,
        target_num_parameters=target,
        allocation=Allocation(kind=kind, layout="uniform", constraints=FREE),
    )
    assert len(set(geometry.widths(pruned))) == 1
    one_step = 4 * geometry.group_costs[0]["intermediate"]
    assert target - one_step < geometry.num_parameters(pruned) <= target


@settings(deadline=None)
@given(st.integers(2, 8), st.floats(0, 0.9), st.integers(0, 99))
def test_the_least_important_layers_go_whole(layers: int, share: float, seed: int) -> None:
    plan = whole(layers=layers, intermediate=16, kv_groups=2)
    geometry, scores = make_geometry(layers=layers), make_scores(plan)
    importances = torch.randperm(layers, generator=torch.Generator().manual_seed(seed)).tolist()
    scores = Scores(
        tuple(
            dataclasses.replace(layer, layer_importance=float(importance))
            for layer, importance in zip(scores.layers, importances, strict=True)
        )
    )
    target = geometry.num_parameters(plan) - round(share * prunable(geometry, plan))
    one_layer = prunable(geometry, plan) // layers
    if target < geometry.num_fixed_parameters + one_layer:
        return
    pruned, _ = allocate(
        scores,
        plan,
        geometry,
        target_num_parameters=target,
        allocation=Allocation(),
        axes=("layer",),
    )
    assert target - one_layer < geometry.num_parameters(pruned) <= target
    kept = {importances[index] for index in pruned.living}
    assert kept == set(range(layers - len(kept), layers))


def test_protected_layers_are_not_dropped() -> None:
    plan = whole(layers=3, intermediate=16, kv_groups=2)
    geometry = make_geometry(layers=3)
    allocation = Allocation(constraints=Constraints(protected_layers=(0, 2)))
    one_layer = prunable(geometry, plan) // 3
    target = geometry.num_parameters(plan) - one_layer
    for lower, reachable in ((0, True), (1, False)):
        try:
            pruned, _ = allocate(
                make_scores(plan),
                plan,
                geometry,
                target_num_parameters=target - lower,
                allocation=allocation,
                axes=("layer",),
            )
        except TargetUnreachable:
            assert not reachable
        else:
            assert reachable
            assert pruned.living == (0, 2)


block_axes = st.sampled_from(
    [("attention_block",), ("mlp_block",), ("attention_block", "mlp_block")]
)


@settings(deadline=None)
@given(block_axes, st.integers(2, 7), st.floats(0, 0.7), st.integers(0, 99))
def test_blocks_go_until_the_target_is_met_to_within_one(
    axes: tuple[Axis, ...], layers: int, share: float, seed: int
) -> None:
    plan = whole(layers=layers, intermediate=16, kv_groups=2)
    geometry = make_geometry(layers=layers)
    target = geometry.num_parameters(plan) - round(share * prunable(geometry, plan))
    try:
        pruned, _ = allocate(
            make_scores(plan, seed=seed),
            plan,
            geometry,
            target_num_parameters=target,
            allocation=Allocation(),
            axes=axes,
        )
    except TargetUnreachable:
        return
    largest = max(
        2 * geometry.group_costs[0]["kv_group"], 16 * geometry.group_costs[0]["intermediate"]
    )
    assert target - largest < geometry.num_parameters(pruned) <= target
    assert any(layer.kv_groups for layer in pruned.layers)
    assert any(layer.intermediate for layer in pruned.layers)
    for layer in pruned.layers:
        assert len(layer.intermediate) in (0, 16)
        assert len(layer.kv_groups) in (0, 2)


def test_the_least_important_block_for_its_size_goes_first() -> None:
    plan = whole(layers=3, intermediate=16, kv_groups=2)
    geometry, scores = make_geometry(layers=3), make_scores(plan)
    scores = Scores(
        tuple(
            dataclasses.replace(layer, attention_importance=attention, mlp_importance=mlp)
            for layer, attention, mlp in zip(
                scores.layers, (0.5, 1e-6, 0.5), (0.4, 0.4, 0.4), strict=True
            )
        )
    )
    pruned, _ = allocate(
        scores,
        plan,
        geometry,
        target_num_parameters=geometry.num_parameters(plan) - 1,
        allocation=Allocation(),
        axes=("attention_block", "mlp_block"),
    )
    assert [bool(layer.kv_groups) for layer in pruned.layers] == [True, False, True]
    assert all(layer.intermediate for layer in pruned.layers)
