"""Plans over whatever they keep: they count, compose and change nothing, whoever made them."""

import copy
from typing import get_args

import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from pruning.allocation.allocate import allocate
from pruning.models.geometry import count_parameters, geometry_of, layer_widths, unpruned_plan
from pruning.plan import GONE, LayerPlan, PruningPlan
from pruning.recipe_parts.method import Allocation, AllocationKind, Layout
from pruning.surgery import apply_plan
from tests.pruning.test_allocation import FREE, make_geometry, make_scores, whole
from tests.pruning.test_surgery import logits
from tests.pruning.tiny import make_tiny_model

NUM_LAYERS, CHANNELS, GROUPS, HEADS, HIDDEN = 3, 12, 3, 2, 24


def tiny_model() -> PreTrainedModel:
    return make_tiny_model(
        "qwen2",
        num_hidden_layers=NUM_LAYERS,
        hidden_size=HIDDEN,
        intermediate_size=CHANNELS,
        num_attention_heads=GROUPS * HEADS,
        num_key_value_heads=GROUPS,
    )


@st.composite
def parts(draw: st.DrawFn, of: tuple[int, ...], *, exactly: int | None = None) -> tuple[int, ...]:
    """Some of a tuple, at least one, in order."""
    number = exactly or draw(st.integers(1, len(of)))
    chosen = draw(st.permutations(of))[:number]
    return tuple(sorted(chosen))


@st.composite
def plans_within(draw: st.DrawFn, before: PruningPlan) -> PruningPlan:
    """A plan that keeps some of what `before` does; of the layers the first always."""
    layers: list[LayerPlan] = []
    for index, layer in enumerate(before.layers):
        if layer == GONE or (index and draw(st.booleans()) and draw(st.booleans())):
            layers.append(GONE)
            continue
        groups = draw(parts(layer.kv_groups))
        heads = dict(zip(layer.kv_groups, layer.query_heads, strict=True))
        number = draw(st.integers(1, len(layer.query_heads[0])))
        layers.append(
            LayerPlan(
                intermediate=draw(parts(layer.intermediate)),
                kv_groups=groups,
                query_heads=tuple(draw(parts(heads[g], exactly=number)) for g in groups),
            )
        )
    hidden = before.hidden or tuple(range(HIDDEN))
    return PruningPlan(layers=tuple(layers), hidden=draw(parts(hidden)))


EVERYTHING = PruningPlan(
    layers=(
        LayerPlan(
            intermediate=tuple(range(CHANNELS)),
            kv_groups=tuple(range(GROUPS)),
            query_heads=(tuple(range(HEADS)),) * GROUPS,
        ),
    )
    * NUM_LAYERS,
    hidden=tuple(range(HIDDEN)),
)
# Not made smaller when one fails: each try cuts a model.
AS_DRAWN = (Phase.explicit, Phase.reuse, Phase.generate)
pairs = plans_within(EVERYTHING).flatmap(
    lambda first: st.tuples(st.just(first), plans_within(first))
)


@settings(deadline=None, max_examples=25, phases=AS_DRAWN)
@given(plans_within(EVERYTHING))
def test_a_plan_counts_what_the_model_cut_by_it_has(plan: PruningPlan) -> None:
    model = tiny_model()
    geometry = geometry_of(model)
    apply_plan(model, plan, previous=unpruned_plan(model))
    narrowed = geometry.narrowed(plan)
    assert count_parameters(model) == narrowed.num_parameters(plan)
    assert layer_widths(model) == narrowed.widths(plan)


@settings(deadline=None, max_examples=15, phases=AS_DRAWN)
@given(pairs)
def test_two_plans_one_after_the_other_are_the_second(
    plans: tuple[PruningPlan, PruningPlan],
) -> None:
    first, second = plans
    once, twice = tiny_model(), tiny_model()
    base = unpruned_plan(once)
    apply_plan(once, second, previous=base)
    apply_plan(twice, first, previous=base)
    apply_plan(twice, second, previous=first)
    expected, found = once.state_dict(), twice.state_dict()
    assert expected.keys() == found.keys()
    # Norms are scaled to the narrower stream in two steps or in one.
    assert all(torch.allclose(expected[name], found[name], rtol=1e-5) for name in expected)


@settings(deadline=None, max_examples=40)
@given(pairs)
def test_positions_in_a_cut_model_name_the_same_groups(
    plans: tuple[PruningPlan, PruningPlan],
) -> None:
    first, second = plans
    relative = second.relative_to(first)
    for before, now, found in zip(first.layers, second.layers, relative.layers, strict=True):
        assert tuple(before.intermediate[i] for i in found.intermediate) == now.intermediate
        assert tuple(before.kv_groups[i] for i in found.kv_groups) == now.kv_groups
    assert first.hidden is not None
    assert relative.hidden is not None
    assert tuple(first.hidden[i] for i in relative.hidden) == second.hidden
    assert PruningPlan.model_validate_json(second.model_dump_json()) == second


@settings(deadline=None)
@given(
    st.sampled_from(get_args(AllocationKind)),
    st.sampled_from(get_args(Layout)),
    st.integers(1, 5),
    st.integers(0, 99),
)
def test_a_target_of_nothing_keeps_the_plan(
    kind: AllocationKind, layout: Layout, layers: int, seed: int
) -> None:
    plan, geometry = (
        whole(layers=layers, intermediate=20, kv_groups=4),
        make_geometry(layers=layers),
    )
    found, _ = allocate(
        make_scores(plan, seed=seed),
        plan,
        geometry,
        target_num_parameters=geometry.num_parameters(plan),
        allocation=Allocation(kind=kind, layout=layout, constraints=FREE),
    )
    assert found == plan


def test_a_plan_that_keeps_everything_changes_nothing() -> None:
    model = tiny_model()
    before = copy.deepcopy(model)
    apply_plan(model, EVERYTHING, previous=unpruned_plan(model))
    assert torch.equal(logits(model), logits(before))
