"""Equal marginal loss: exact targets, convex curves, and no cheaper way to the same size."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning.allocation.allocate import allocate
from pruning.allocation.debt import Debt
from pruning.allocation.equal_marginal import convex_marginals
from pruning.plan import PruningPlan
from pruning.recipe_parts.method import Allocation, Constraints
from pruning.scores import LayerScores, Removal, Scores
from tests.pruning.test_allocation import HEAD, HIDDEN, make_geometry

CHANNEL, GROUP = 3 * HIDDEN, 8 * HEAD * HIDDEN
BLOCK = 4
EQUAL = Allocation(
    kind="equal_marginal",
    constraints=Constraints(width_multiple=BLOCK, min_intermediate_size=BLOCK),
)


def make_scores(layers: int, *, channels: int, groups: int, seed: int) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    return Scores(
        tuple(
            LayerScores(
                intermediate=torch.rand(channels, generator=generator),
                kv_groups=CHANNEL * torch.rand(groups, generator=generator),
                query_heads=torch.rand(groups, 3, generator=generator),
                attention_importance=1.0,
                mlp_importance=1.0,
            )
            for _ in range(layers)
        )
    )


def whole(layers: int, *, channels: int, groups: int) -> PruningPlan:
    return PruningPlan.keep_all(num_layers=layers, intermediate_size=channels, num_kv_groups=groups)


def marginals(scores: Scores, plan: PruningPlan) -> tuple[list[float], list[float]]:
    """Per channel: the dearest block lost in any layer, and the cheapest one kept."""
    lost, kept = [], []
    for layer, layer_plan in zip(scores.layers, plan.layers, strict=True):
        ranked = layer.intermediate.sort().values.view(-1, BLOCK).mean(dim=1).tolist()
        num_lost = (len(layer.intermediate) - len(layer_plan.intermediate)) // BLOCK
        lost += ranked[num_lost - 1 : num_lost] if num_lost else []
        kept += ranked[num_lost : num_lost + 1] if num_lost < len(ranked) - 1 else []
    return lost, kept


@settings(max_examples=50, deadline=None)
@given(costs=st.lists(st.floats(0, 100), min_size=1, max_size=20), data=st.data())
def test_convex_marginals_never_fall_and_keep_the_total(
    costs: list[float], data: st.DataObject
) -> None:
    sizes = data.draw(
        st.lists(st.integers(1, 9), min_size=len(costs), max_size=len(costs)), label="sizes"
    )
    found = convex_marginals(costs, sizes)
    assert all(a <= b + 1e-9 for a, b in pairwise(found))
    total = sum(marginal * size for marginal, size in zip(found, sizes, strict=True))
    assert total == pytest.approx(sum(costs))


@settings(max_examples=50, deadline=None)
@given(
    layers=st.integers(1, 5),
    groups=st.integers(1, 4),
    share=st.floats(0, 0.6),
    seed=st.integers(0, 1000),
)
def test_the_target_is_met_to_within_one_block(
    layers: int, groups: int, share: float, seed: int
) -> None:
    geometry, plan = make_geometry(layers=layers), whole(layers, channels=64, groups=groups)
    scores = make_scores(layers, channels=64, groups=groups, seed=seed)
    target = geometry.num_parameters(plan) - round(share * 0.9 * layers * 64 * CHANNEL)
    after, _ = allocate(scores, plan, geometry, target_num_parameters=target, allocation=EQUAL)
    assert target - BLOCK * CHANNEL < geometry.num_parameters(after) <= target


@settings(max_examples=30, deadline=None)
@given(share=st.floats(0.05, 0.8), seed=st.integers(0, 1000))
def test_no_layer_keeps_a_block_cheaper_than_one_another_lost(share: float, seed: int) -> None:
    geometry, plan = make_geometry(layers=4), whole(4, channels=64, groups=1)
    scores = make_scores(4, channels=64, groups=1, seed=seed)
    target = geometry.num_parameters(plan) - round(share * 4 * 60 * CHANNEL)
    after, _ = allocate(scores, plan, geometry, target_num_parameters=target, allocation=EQUAL)
    lost, kept = marginals(scores, after)
    if lost and kept:
        assert max(lost) <= min(kept) + 1e-6


def test_axes_compete_in_one_currency() -> None:
    geometry, plan = make_geometry(layers=2), whole(2, channels=64, groups=2)
    scores = make_scores(2, channels=64, groups=2, seed=0)
    scores.layers[1].kv_groups[0] = 1e-3
    target = geometry.num_parameters(plan) - GROUP
    after, _ = allocate(scores, plan, geometry, target_num_parameters=target, allocation=EQUAL)
    assert after.layers[1].kv_groups == (1,)
    assert after.layers[0] == plan.layers[0]


def test_the_order_of_removal_wins_over_the_order_of_importance() -> None:
    geometry, plan = make_geometry(layers=1), whole(1, channels=16, groups=1)
    scores = make_scores(1, channels=16, groups=1, seed=0)
    order = torch.arange(15, -1, -1)
    removal = Removal(order=order, costs=torch.arange(16.0))
    layer = scores.layers[0]
    ordered = LayerScores(**{**layer.__dict__, "removals": {"intermediate": removal}})
    target = geometry.num_parameters(plan) - 4 * CHANNEL
    after, _ = allocate(
        Scores((ordered,)), plan, geometry, target_num_parameters=target, allocation=EQUAL
    )
    assert after.layers[0].intermediate == tuple(range(12))


def test_nothing_is_owed_afterwards() -> None:
    geometry, plan = make_geometry(layers=3), whole(3, channels=64, groups=2)
    scores = make_scores(3, channels=64, groups=2, seed=1)
    _, debt = allocate(
        scores,
        plan,
        geometry,
        target_num_parameters=geometry.num_parameters(plan) - 30_000,
        allocation=EQUAL,
    )
    assert debt == Debt.none(3)


def test_a_uniform_layout_takes_the_cheapest_common_widths() -> None:
    geometry, plan = make_geometry(layers=2), whole(2, channels=64, groups=2)
    scores = make_scores(2, channels=64, groups=2, seed=2)
    for layer in scores.layers:
        layer.kv_groups[:] = torch.tensor([1e-4, 50.0])
    uniform = EQUAL.model_copy(update={"layout": "uniform"})
    target = geometry.num_parameters(plan) - 2 * GROUP - 4 * BLOCK * CHANNEL
    after, _ = allocate(scores, plan, geometry, target_num_parameters=target, allocation=uniform)
    assert [layer.kv_groups for layer in after.layers] == [(1,), (1,)]
    assert len({len(layer.intermediate) for layer in after.layers}) == 1
    assert geometry.num_parameters(after) <= target
