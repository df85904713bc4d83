"""Cutting equals masking, for every family; the optimizer follows the cut."""

import copy
import random

import pytest
import torch
from transformers import PreTrainedModel

from pruning.errors import InvalidPlan
from pruning.models.geometry import count_parameters, geometry_of, layer_widths, unpruned_plan
from pruning.plan import LayerPlan, PruningPlan
from pruning.surgery import apply_mask, apply_plan
from tests.pruning.tiny import FAMILIES, make_tiny_model, random_ids

HEADS = {"mha": (4, 4), "gqa": (6, 3), "mqa": (6, 1)}


def random_plan(model: PreTrainedModel, *, seed: int = 3, share: float = 0.6) -> PruningPlan:
    """Keeps a random share of each layer's groups, different in each layer, at least one."""
    draw = random.Random(seed)

    def some(groups: tuple[int, ...]) -> tuple[int, ...]:
        number = max(1, round(len(groups) * draw.uniform(share / 2, 1)))
        return tuple(sorted(draw.sample(groups, number)))

    return PruningPlan(
        layers=tuple(
            LayerPlan(intermediate=some(layer.intermediate), kv_groups=some(layer.kv_groups))
            for layer in unpruned_plan(model).layers
        )
    )


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    return model(input_ids=random_ids()).logits


def loss(model: PreTrainedModel) -> torch.Tensor:
    return model(input_ids=random_ids(), labels=random_ids()).loss


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_cutting_equals_masking(family: str, heads: tuple[int, int], tied: bool) -> None:
    model = make_tiny_model(
        family, num_attention_heads=heads[0], num_key_value_heads=heads[1], tied=tied
    )
    masked, base = copy.deepcopy(model), unpruned_plan(model)
    plan = random_plan(model)
    apply_mask(masked, plan, previous=base)
    apply_plan(model, plan, previous=base)
    assert (logits(model) - logits(masked)).abs().max() < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_keeping_everything_is_the_identity(family: str) -> None:
    model = make_tiny_model(family)
    before, base = logits(model), unpruned_plan(model)
    apply_plan(model, base, previous=base)
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plan_counts_the_parameters_that_the_cut_model_has(family: str) -> None:
    model = make_tiny_model(family)
    geometry, plan = geometry_of(model), random_plan(model)
    apply_plan(model, plan, previous=unpruned_plan(model))
    assert count_parameters(model) == geometry.num_parameters(plan)
    assert layer_widths(model) == geometry.widths(plan)
    assert geometry_of(model) == geometry


def test_two_cuts_compose_to_the_second_plan(tiny_llama: PreTrainedModel) -> None:
    once, base = copy.deepcopy(tiny_llama), unpruned_plan(tiny_llama)
    first = random_plan(tiny_llama)
    second = PruningPlan(
        layers=tuple(
            LayerPlan(intermediate=layer.intermediate[::2], kv_groups=layer.kv_groups[:1])
            for layer in first.layers
        )
    )
    apply_plan(tiny_llama, first, previous=base)
    apply_plan(tiny_llama, second, previous=first)
    apply_plan(once, second, previous=base)
    assert torch.equal(logits(tiny_llama), logits(once))


def test_the_optimizer_keeps_the_moments_of_what_stays(tiny_llama: PreTrainedModel) -> None:
    optimizer = torch.optim.AdamW(tiny_llama.parameters(), lr=1e-3)
    loss(tiny_llama).backward()
    optimizer.step()
    plan = random_plan(tiny_llama)
    kept = torch.tensor(plan.layers[0].intermediate)
    down = tiny_llama.get_submodule("model.layers.0.mlp.down_proj")
    moments = {k: v.clone() for k, v in optimizer.state[down.weight].items()}

    apply_plan(tiny_llama, plan, previous=unpruned_plan(tiny_llama), optimizer=optimizer)

    state = optimizer.state[down.weight]
    assert torch.equal(state["exp_avg"], moments["exp_avg"][:, kept])
    assert torch.equal(state["exp_avg_sq"], moments["exp_avg_sq"][:, kept])
    assert state["step"] == moments["step"]
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {
        id(p) for p in tiny_llama.parameters()
    }
    assert set(optimizer.state) == set(tiny_llama.parameters())


def test_training_after_a_cut_goes_on_as_under_a_mask(tiny_llama: PreTrainedModel) -> None:
    """The masked model, trained with the removed weights held at zero, takes the same path."""
    base, plan = unpruned_plan(tiny_llama), random_plan(tiny_llama)
    masked = copy.deepcopy(tiny_llama)
    losses: list[list[float]] = []
    for model, change in ((tiny_llama, apply_plan), (masked, apply_mask)):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
        history = []
        for step in range(6):
            if step == 3 and change is apply_plan:
                apply_plan(model, plan, previous=base, optimizer=optimizer)
            optimizer.zero_grad()
            value = loss(model)
            value.backward()
            optimizer.step()
            history.append(value.item())
            if change is apply_mask and step >= 2:
                apply_mask(model, plan, previous=base)
        losses.append(history)
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (LayerPlan(intermediate=(), kv_groups=(0,)), "keeps no group of intermediate"),
        (LayerPlan(intermediate=(0,), kv_groups=()), "keeps no group of kv_group"),
        (LayerPlan(intermediate=(0, 999), kv_groups=(0,)), "removed before"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_before_any_cut(
    tiny_llama: PreTrainedModel, layer: LayerPlan, message: str
) -> None:
    base, before = unpruned_plan(tiny_llama), layer_widths(tiny_llama)
    plan = PruningPlan(layers=(base.layers[0], base.layers[1], layer))
    with pytest.raises(InvalidPlan, match=message):
        apply_plan(tiny_llama, plan, previous=base)
    assert layer_widths(tiny_llama) == before
