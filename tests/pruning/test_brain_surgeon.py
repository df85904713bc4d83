"""Structured optimal brain surgeon, checked against least squares done by brute force."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning.brain_surgeon import Elimination, eliminate, output_cost, refitted

RIDGE = 1e-9


def make_problem(
    *, inputs: int = 12, outputs: int = 5, tokens: int = 200, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weight [O, I], correlated inputs [N, I], and the metrics H [I, I] and G [O, O], fp64."""
    generator = torch.Generator().manual_seed(seed)
    weight_OI = torch.randn(outputs, inputs, generator=generator, dtype=torch.float64)
    mixing_II = torch.randn(inputs, inputs, generator=generator, dtype=torch.float64)
    rows_NI = torch.randn(tokens, inputs, generator=generator, dtype=torch.float64) @ mixing_II
    gradients_NO = torch.randn(tokens, outputs, generator=generator, dtype=torch.float64)
    gradients_NO = gradients_NO * torch.linspace(0.1, 3.0, outputs, dtype=torch.float64)
    return (
        weight_OI,
        rows_NI,
        rows_NI.T @ rows_NI / tokens,
        gradients_NO.T @ gradients_NO / tokens,
    )


def quadratic_loss(
    weight_OI: torch.Tensor, refit_OK: torch.Tensor, kept: list[int], rows_NI: torch.Tensor,
    gradients_OO: torch.Tensor,
) -> float:  # fmt: skip
    """1/2 E[e^T G e] of the output error e of a refitted layer."""
    error_NO = rows_NI @ weight_OI.T - rows_NI[:, kept] @ refit_OK.T
    return float(torch.einsum("no,op,np->", error_NO, gradients_OO, error_NO)) / len(rows_NI) / 2


def gone_after(elimination: Elimination, num_groups: int) -> set[int]:
    return set(elimination.order[:num_groups].tolist())


def test_refitting_is_least_squares_on_the_kept_inputs() -> None:
    weight, rows, inputs, _ = make_problem()
    kept = [0, 2, 3, 7, 11]
    refit = refitted(weight, inputs, torch.tensor(kept), ridge=RIDGE)
    expected = torch.linalg.lstsq(rows[:, kept], rows @ weight.T).solution.T
    torch.testing.assert_close(refit, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("group_size", [1, 3])
def test_a_score_is_the_loss_left_after_removing_one_group_and_refitting(group_size: int) -> None:
    weight, rows, inputs, gradients = make_problem()
    scores = eliminate(
        weight, inputs, gradients, group_size=group_size, widths=(), ridge=RIDGE
    ).scores
    for group, score in enumerate(scores.tolist()):
        kept = [i for i in range(12) if i // group_size != group]
        refit = torch.linalg.lstsq(rows[:, kept], rows @ weight.T).solution.T
        assert score == pytest.approx(
            quadratic_loss(weight, refit, kept, rows, gradients), rel=1e-5
        )


@pytest.mark.parametrize(("group_size", "widths"), [(1, (9, 6, 2)), (3, (3, 1))])
def test_costs_add_up_to_the_loss_of_the_refitted_layer(
    group_size: int, widths: tuple[int, ...]
) -> None:
    weight, rows, inputs, gradients = make_problem()
    elimination = eliminate(
        weight, inputs, gradients, group_size=group_size, widths=widths, ridge=RIDGE
    )
    for width in widths:
        num_gone = 12 // group_size - width
        gone = gone_after(elimination, num_gone)
        kept = [i for i in range(12) if i // group_size not in gone]
        refit = refitted(weight, inputs, torch.tensor(kept), ridge=RIDGE)
        loss = quadratic_loss(weight, refit, kept, rows, gradients)
        assert float(elimination.costs[:num_gone].sum()) == pytest.approx(loss, rel=1e-5)


def test_elimination_takes_the_cheapest_group_at_each_step() -> None:
    weight, rows, inputs, gradients = make_problem(inputs=6)
    elimination = eliminate(weight, inputs, gradients, group_size=1, widths=(5, 4, 3), ridge=RIDGE)
    kept = list(range(6))
    for group in elimination.order[:3].tolist():
        losses = {}
        for candidate in kept:
            rest = [i for i in kept if i != candidate]
            refit = refitted(weight, inputs, torch.tensor(rest), ridge=RIDGE)
            losses[candidate] = quadratic_loss(weight, refit, rest, rows, gradients)
        assert group == min(losses, key=lambda candidate: losses[candidate])
        kept.remove(group)


def test_what_never_fires_or_is_a_copy_goes_first_and_costs_nothing() -> None:
    weight, rows, _, gradients = make_problem()
    rows[:, 4] = 0
    rows[:, 8] = rows[:, 1] * 2
    inputs = rows.T @ rows / len(rows)
    elimination = eliminate(
        weight, inputs, gradients, group_size=1, widths=(11, 10, 9), ridge=1e-10
    )
    gone = gone_after(elimination, 2)
    assert 4 in gone
    assert gone & {1, 8}
    assert float(elimination.costs[:2].sum()) < 1e-6 * float(elimination.costs[2])


def test_groups_beyond_the_smallest_width_cannot_go() -> None:
    weight, _, inputs, gradients = make_problem()
    elimination = eliminate(weight, inputs, gradients, group_size=1, widths=(8, 5), ridge=RIDGE)
    assert elimination.order.sort().values.tolist() == list(range(12))
    assert [math.isinf(cost) for cost in elimination.costs.tolist()] == [False] * 7 + [True] * 5


def test_losing_everything_costs_the_whole_output() -> None:
    weight, rows, inputs, gradients = make_problem()
    nothing = torch.zeros(5, 0, dtype=torch.float64)
    expected = quadratic_loss(weight, nothing, [], rows, gradients)
    assert output_cost(weight, inputs, gradients) == pytest.approx(expected)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), kept=st.sets(st.integers(0, 11), min_size=1, max_size=11))
def test_refitting_never_leaves_a_larger_error_than_not_refitting(
    seed: int, kept: set[int]
) -> None:
    weight, rows, inputs, gradients = make_problem(seed=seed)
    columns = sorted(kept)
    refit = refitted(weight, inputs, torch.tensor(columns), ridge=RIDGE)
    with_refit = quadratic_loss(weight, refit, columns, rows, gradients)
    without = quadratic_loss(weight, weight[:, columns], columns, rows, gradients)
    assert with_refit <= without * (1 + 1e-6)
