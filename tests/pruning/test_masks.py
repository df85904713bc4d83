"""Learned hard-concrete masks: what they draw, where they lead, and that cutting keeps it."""

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from pruning.compensation import fold_factors
from pruning.events import LayerWidths
from pruning.importance.hard_concrete import open_probability, sampled, settled
from pruning.importance.mask_targets import ShapeTarget, SizeTarget, target_shares
from pruning.importance.mask_training import MaskTraining
from pruning.importance.masks import Masks
from pruning.models.freezing import frozen
from pruning.models.geometry import count_parameters, count_prunable_parameters, unpruned_plan
from pruning.plan import GONE, PruningPlan
from pruning.recipe_parts.method import MASKED_AXES
from pruning.surgery import apply_mask, apply_plan
from tests.pruning.test_surgery import logits, random_plan
from tests.pruning.tiny import make_tiny_model, random_ids

DENSE = ["llama", "qwen2", "qwen3", "gemma2", "phi3", "granite"]


def drawn_values(log_odds: float, count: int = 200_000) -> torch.Tensor:
    noise = torch.rand(count, generator=torch.Generator().manual_seed(0))
    return sampled(torch.tensor(log_odds), noise)


def learn(masks: Masks, model: PreTrainedModel, lesson: MaskTraining, num_steps: int) -> None:
    """By the distance from what the whole model says, so that each group has its worth."""
    ids = random_ids(num_sequences=4, length=16)
    with frozen(model):
        dense = model(input_ids=ids).logits.softmax(-1)
        with masks.applied():
            for step in range(1, num_steps + 1):
                found = model(input_ids=ids).logits.log_softmax(-1)
                (-(dense * found).sum(-1).mean()).backward()
                lesson.step(step / num_steps)


def some_plan(model: PreTrainedModel) -> PruningPlan:
    """Widths of its own for each layer, the second layer gone, and a narrower stream."""
    layers = list(random_plan(model).layers)
    layers[1] = GONE
    hidden = tuple(c for c in range(model.config.hidden_size) if c % 3)
    return PruningPlan(layers=tuple(layers), hidden=hidden)


@pytest.mark.parametrize("log_odds", [-4.6, -2.0, 0.0, 1.0, 4.6])
def test_masks_are_open_as_often_as_their_log_odds_say(log_odds: float) -> None:
    values = drawn_values(log_odds)
    expected = open_probability(torch.tensor(log_odds)).item()
    assert (values > 0).float().mean().item() == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize("log_odds", [-4.6, -2.0, 0.0, 1.0, 4.6])
def test_the_settled_value_is_near_the_mean_of_those_drawn(log_odds: float) -> None:
    found = settled(torch.tensor(log_odds)).item()
    assert found == pytest.approx(drawn_values(log_odds).mean().item(), abs=0.07)


@pytest.mark.parametrize("family", DENSE)
def test_shut_masks_compute_what_the_masked_model_does(family: str) -> None:
    model = make_tiny_model(family)
    plan, base = some_plan(model), unpruned_plan(model)
    masks = Masks(model, MASKED_AXES)
    for mask in masks.all():
        # Settles at exactly 1.
        mask.log_odds.data.fill_(100.0)
    masks.settle(plan)
    with masks.applied():
        found = logits(model)
    apply_mask(model, plan, previous=base)
    assert (found - logits(model)).abs().max() < 1e-5


@pytest.mark.parametrize("family", DENSE)
def test_the_cut_at_the_end_equals_the_masked_model(family: str) -> None:
    model = make_tiny_model(family)
    plan, base = some_plan(model), unpruned_plan(model)
    masks = Masks(model, MASKED_AXES)
    generator = torch.Generator().manual_seed(0)
    for mask in masks.all():
        mask.log_odds.data.normal_(0, 3, generator=generator)
    masks.settle(plan)
    with masks.applied():
        masked = logits(model)
    fold_factors(model, masks.input_factors())
    apply_plan(model, plan, previous=base)
    assert (masked - logits(model)).abs().max() < 1e-5


def test_nothing_is_left_of_the_masks_outside(tiny_llama: PreTrainedModel) -> None:
    before = logits(tiny_llama)
    masks = Masks(tiny_llama, MASKED_AXES)
    masks.draw(np.random.default_rng(0))
    with masks.applied():
        assert not torch.equal(logits(tiny_llama), before)
    assert torch.equal(logits(tiny_llama), before)


def test_masks_expect_the_parameters_that_the_plan_leaves(tiny_llama: PreTrainedModel) -> None:
    plan = some_plan(tiny_llama)
    masks = Masks(tiny_llama, MASKED_AXES)
    for mask in masks.all():
        mask.log_odds.data.fill_(100.0)
    masks.settle(plan)
    for mask in masks.all():
        mask.log_odds.data = torch.where(mask.values > 0, 100.0, -100.0)
    expected = masks.expected_share().item() * count_prunable_parameters(tiny_llama)
    apply_plan(tiny_llama, plan, previous=unpruned_plan(tiny_llama))
    assert round(expected) == count_prunable_parameters(tiny_llama)


def test_learned_masks_reach_the_shape(tiny_llama: PreTrainedModel) -> None:
    shares = target_shares(
        LayerWidths(intermediate_size=64, num_attention_heads=6, num_key_value_heads=3),
        LayerWidths(intermediate_size=40, num_attention_heads=2, num_key_value_heads=2),
    )
    target = ShapeTarget({**shares, "layer": 1 / 3, "hidden": 1 / 4})
    masks = Masks(tiny_llama, MASKED_AXES)
    learn(masks, tiny_llama, MaskTraining(masks, target, seed=(0, 1)), 150)
    missed = torch.cat(target.violations(masks, 1.0)).abs()
    assert missed.mean() < 0.03
    assert missed.max() < 0.15


def test_learned_masks_reach_the_size_and_take_what_the_loss_misses_least(
    tiny_llama: PreTrainedModel,
) -> None:
    tiny_llama.model.layers[1].mlp.down_proj.weight.data[:, ::2] = 0
    target, masks = SizeTarget(0.3), Masks(tiny_llama, ("intermediate", "kv_group"))
    learn(masks, tiny_llama, MaskTraining(masks, target, seed=(0, 1)), 150)
    assert target.violations(masks, 1.0)[0].abs().item() < 0.03
    channels = masks.scores().layers[1].intermediate
    assert channels[::2].mean() < 0.3 * channels[1::2].mean()


def test_the_same_seed_learns_the_same_masks(tiny_llama: PreTrainedModel) -> None:
    found = []
    for _ in range(2):
        masks = Masks(tiny_llama, ("intermediate", "layer"))
        lesson = MaskTraining(masks, SizeTarget(0.3), seed=(7, 1))
        learn(masks, tiny_llama, lesson, 5)
        found.append([mask.log_odds.detach().clone() for mask in masks.all()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_a_step_that_was_not_finite_moves_no_mask_by_its_gradient(
    tiny_llama: PreTrainedModel,
) -> None:
    masks = Masks(tiny_llama, ("intermediate",))
    lesson = MaskTraining(masks, SizeTarget(0.3), seed=(0, 1))
    for mask in masks.all():
        mask.values.grad = torch.full_like(mask.values, float("nan"))
    lesson.step(0.5)
    assert all(bool(mask.log_odds.isfinite().all()) for mask in masks.all())


def test_protected_layers_have_no_masks(tiny_llama: PreTrainedModel) -> None:
    masks = Masks(tiny_llama, MASKED_AXES, spared=frozenset({0}))
    assert [bool(layer.masks) for layer in masks.layers] == [False, True, True]
    whole = sum(layer.num_parameters for layer in masks.layers)
    assert whole == count_prunable_parameters(tiny_llama) < count_parameters(tiny_llama)
