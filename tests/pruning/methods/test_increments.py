from itertools import pairwise
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruning.errors import TargetUnreachable
from pruning.methods.increments import (
    Increment,
    TokenShare,
    plan_increments,
    repaired_from,
    resolve_target,
    stream_share,
)
from pruning.recipe import Recipe
from pruning.recipe_parts.method import Schedule, ScheduleKind
from pruning.recipe_parts.target import Shape, Target


def plan(
    targets: list[int],
    total_steps: int = 100,
    repaired_from: int | None = None,
    **schedule: object,
) -> tuple[Increment, ...]:
    return plan_increments(
        num_parameters=1000,
        targets=targets,
        total_steps=total_steps,
        schedule=Schedule.model_validate(schedule),
        repaired_from=repaired_from,
    )


def resolve(target: Target) -> int:
    return resolve_target(
        target,
        num_parameters=1000,
        num_prunable_parameters=800,
        dtype="bfloat16",
        shaped=lambda shape: 10 * (shape.intermediate_size or 0),
    )


@pytest.mark.parametrize(("target", "expected"), [(900, 3), (820, 3), (700, 5), (300, 10)])
def test_the_number_of_cuts_follows_the_share_removed(target: int, expected: int) -> None:
    assert len(plan([target])) == expected


def test_cuts_are_equal_and_end_at_the_target() -> None:
    sizes = [i.target_num_parameters for i in plan([700], num_increments=3)]
    assert sizes == [900, 800, 700]


def test_a_family_passes_each_of_its_sizes() -> None:
    sizes = [i.target_num_parameters for i in plan([400, 900, 800], num_increments=6)]
    assert {900, 800, 400} <= set(sizes)
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) == 6


def test_a_family_of_repaired_cuts_takes_its_first_fifth_at_once_and_later_ones_in_two() -> None:
    sizes = [i.target_num_parameters for i in plan([840, 680, 520], repaired_from=800)]
    # 800 of the 1,000 can go: 640, then 480 and 320 of them are left, over equal shares of the way.
    assert sizes == [840, 200 + 554, 680, 200 + 392, 520]


@given(
    st.integers(1, 1000).flatmap(lambda n: st.tuples(st.just(n), st.integers(1001 - n, 1000))),
)
def test_no_repaired_cut_takes_more_than_a_fifth_of_what_it_finds(sizes: tuple[int, int]) -> None:
    repaired_from, target = sizes
    fixed = 1000 - repaired_from
    found = [i.target_num_parameters - fixed for i in plan([target], repaired_from=repaired_from)]
    # But for whole parameters.
    assert all(after >= 0.8 * before - 1 for before, after in pairwise([repaired_from, *found]))
    assert found[-1] == target - fixed


def test_repaired_cuts_are_as_many_as_asked() -> None:
    assert len(plan([700], repaired_from=800, num_increments=4)) == 4


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 800),
        ({"recovery": {"kind": "full"}}, None),
        ({"compensation": "none"}, None),
        ({"method": "minitron", "axes": ["hidden"], "compensation": "least_squares"}, 1000),
    ],
)
def test_cuts_are_repaired_alone_where_nothing_trains(
    changes: dict[str, object], expected: int | None
) -> None:
    plain = {
        "model": "org/model",
        "target": "20%",
        "data": "org/text",
        "recovery": {"kind": "none"},
    }
    recipe = Recipe.model_validate(plain | changes)
    assert repaired_from(recipe, num_parameters=1000, num_prunable_parameters=800) == expected


@pytest.mark.parametrize("share", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("total_steps", [0, 1, 7, 100])
def test_every_step_belongs_to_one_increment(share: str, total_steps: int) -> None:
    increments = plan([500], total_steps, num_increments=6, token_share=share)
    bounds = [increments[0].from_step, *(i.until_step for i in increments)]
    assert bounds[0] == 0
    assert bounds[-1] == total_steps
    assert bounds == sorted(bounds)
    assert [i.from_step for i in increments] == bounds[:-1]


@given(
    st.sampled_from(get_args(TokenShare)),
    st.sampled_from(get_args(ScheduleKind)),
    st.integers(1, 40),
    st.integers(0, 5000),
    st.floats(0.01, 1),
)
def test_shares_are_whole_steps_that_sum_exactly_and_never_shrink(
    share: str, kind: str, num_increments: int, total_steps: int, pruning_share: float
) -> None:
    schedule = {"num_increments": num_increments, "token_share": share, "kind": kind}
    increments = plan([500], total_steps, pruning_share=pruning_share, **schedule)
    steps = [i.until_step - i.from_step for i in increments]
    assert sum(steps) == total_steps
    # But for rounding, twice at either end.
    assert all(later >= earlier - 2 for earlier, later in pairwise(steps))
    if share == "constant":
        assert max(steps) - min(steps) <= 1
    for increment in increments:
        pruning = increment.pruning_until_step - increment.from_step
        assert 0 <= pruning <= increment.until_step - increment.from_step
        assert (pruning > 0) == (kind != "staged" and increment.until_step > increment.from_step)


@pytest.mark.parametrize(
    ("share", "first", "last"), [("cosine", 0.076, 0.383), ("linear", 0.1, 0.4)]
)
def test_shares_are_those_of_adapt_pruner(share: str, first: float, last: float) -> None:
    increments = plan([500], 100_000, num_increments=4, token_share=share)
    steps = [i.until_step - i.from_step for i in increments]
    assert (steps[0] / 1e5, steps[-1] / 1e5) == pytest.approx((first, last), abs=5e-4)


def test_linear_shares_grow_with_the_increment() -> None:
    increments = plan([500], 100, num_increments=4, token_share="linear")
    assert [i.until_step - i.from_step for i in increments] == [10, 20, 30, 40]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (Target(num_parameters=700), 700),
        (Target(sparsity=0.25), 800),
        (Target(size_bytes=1300), 650),
    ],
)
def test_each_kind_of_target_is_a_number_of_parameters(target: Target, expected: int) -> None:
    assert resolve(target) == expected


def test_a_target_above_the_model_is_refused() -> None:
    with pytest.raises(TargetUnreachable, match="above the model's 1,000"):
        resolve(Target(num_parameters=1001))


def test_a_shape_means_what_it_counts() -> None:
    assert resolve(Target(shape=Shape(intermediate_size=7))) == 70


def test_where_hidden_channels_go_sparsity_is_still_of_the_layers() -> None:
    found = resolve_target(
        Target(sparsity=0.25),
        num_parameters=1000,
        num_prunable_parameters=800,
        dtype="bfloat16",
        shaped=lambda _: 0,
        outside=lambda sparsity: round(200 * stream_share(("hidden",), sparsity)),
    )
    assert found == 600 + 150
    assert stream_share(("hidden", "intermediate"), 0.36) == pytest.approx(0.8)
    assert stream_share(("intermediate",), 0.36) == 1
