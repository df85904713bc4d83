"""Channels of the residual stream: cut everywhere at once, and a stock model comes out."""

import copy
import functools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from pruning.allocation.allocate import allocate
from pruning.errors import InvalidPlan, TargetUnreachable, UnsupportedModel
from pruning.estimate import estimate
from pruning.events import IncrementFinished
from pruning.importance.measure import measure_importance
from pruning.models.geometry import (
    Geometry,
    count_parameters,
    geometry_of,
    layer_widths,
    unpruned_plan,
)
from pruning.pipeline import run
from pruning.plan import PruningPlan
from pruning.recipe_parts.method import Allocation, Axis, Constraints, Importance
from pruning.scores import Scores
from pruning.surgery import apply_mask, apply_plan
from tests.pruning.recipes import make_recipe, write_corpus
from tests.pruning.test_surgery import random_plan
from tests.pruning.tiny import FAMILIES, make_tiny_model, random_ids

SELECTABLE = sorted(set(FAMILIES) - {"gpt_neox"})
KEPT = tuple(index for index in range(48) if index % 4 != 1)  # 36, which 6 heads divide.


def narrowed(plan: PruningPlan, kept: tuple[int, ...] = KEPT) -> PruningPlan:
    return plan.model_copy(update={"hidden": kept})


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    return model(input_ids=random_ids()).logits


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", SELECTABLE)
def test_cutting_equals_masking(family: str, tied: bool) -> None:
    model = make_tiny_model(family, tied=tied)
    masked, base, geometry = copy.deepcopy(model), unpruned_plan(model), geometry_of(model)
    plan = narrowed(base)
    apply_mask(masked, plan, previous=base)
    apply_plan(model, plan, previous=base)
    expected = logits(masked)
    assert (logits(model) - expected).abs().max() < 1e-5 * max(1.0, expected.abs().max().item())
    assert model.config.hidden_size == len(KEPT)
    assert count_parameters(model) == geometry.num_parameters(plan)


@pytest.mark.parametrize("family", SELECTABLE)
def test_it_goes_together_with_every_axis_of_the_layers(family: str) -> None:
    model = make_tiny_model(family)
    masked, base, geometry = copy.deepcopy(model), unpruned_plan(model), geometry_of(model)
    plan = narrowed(random_plan(model))
    apply_mask(masked, plan, previous=base)
    apply_plan(model, plan, previous=base)
    expected = logits(masked)
    assert (logits(model) - expected).abs().max() < 1e-5 * max(1.0, expected.abs().max().item())
    assert count_parameters(model) == geometry.num_parameters(plan)
    assert layer_widths(model) == geometry.widths(plan)
    assert geometry_of(model, plan).num_parameters(plan) == count_parameters(model)


@pytest.mark.parametrize("family", SELECTABLE)
def test_plain_transformers_opens_it_bit_equal(family: str, tmp_path: Path) -> None:
    model = make_tiny_model(family)
    base = unpruned_plan(model)
    apply_plan(model, narrowed(base), previous=base)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert "per_layer_config" not in config
    assert config["hidden_size"] == len(KEPT)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(model))


def test_two_cuts_compose_to_the_second(tiny_llama: PreTrainedModel) -> None:
    once, base = copy.deepcopy(tiny_llama), unpruned_plan(tiny_llama)
    first, second = narrowed(base), narrowed(random_plan(tiny_llama), KEPT[:18])
    apply_plan(tiny_llama, first, previous=base)
    apply_plan(tiny_llama, second, previous=first)
    apply_plan(once, second, previous=base)
    torch.testing.assert_close(logits(tiny_llama), logits(once), rtol=1e-4, atol=1e-5)


def test_the_optimizer_keeps_the_moments_of_what_stays(tiny_llama: PreTrainedModel) -> None:
    optimizer = torch.optim.AdamW(tiny_llama.parameters(), lr=1e-3)
    tiny_llama(input_ids=random_ids(), labels=random_ids()).loss.backward()
    optimizer.step()
    base = unpruned_plan(tiny_llama)
    before = optimizer.state[tiny_llama.get_input_embeddings().weight]["exp_avg"].clone()
    apply_plan(tiny_llama, narrowed(base), previous=base, optimizer=optimizer)
    embeddings = tiny_llama.get_input_embeddings().weight
    assert tiny_llama.get_output_embeddings().weight is embeddings
    assert torch.equal(optimizer.state[embeddings]["exp_avg"], before[:, list(KEPT)])
    assert set(optimizer.state) == set(tiny_llama.parameters())


def test_a_channel_that_went_cannot_return(tiny_llama: PreTrainedModel) -> None:
    base = unpruned_plan(tiny_llama)
    with pytest.raises(InvalidPlan, match="removed before"):
        base.relative_to(narrowed(base))
    with pytest.raises(InvalidPlan, match="removed before"):
        narrowed(base).relative_to(narrowed(base, KEPT[1:]))


def test_norms_that_centre_the_stream_are_refused() -> None:
    model = make_tiny_model("gpt_neox")
    base = unpruned_plan(model)
    with pytest.raises(UnsupportedModel, match="mean over all hidden channels"):
        apply_plan(model, narrowed(base), previous=base)


TAYLOR, ACTIVATION = Importance(kind="taylor"), Importance(kind="activation")
IDS = random_ids()


def test_taylor_sums_every_weight_that_a_channel_takes_part_in() -> None:
    model = make_tiny_model("llama", tied=True)
    found = measure_importance(model, [IDS], TAYLOR, hidden=True)
    model(input_ids=IDS, labels=IDS).loss.backward()
    expected = torch.zeros(48)
    for name, parameter in model.named_parameters():
        if name.endswith("q_proj.bias") or parameter.grad is None:
            continue
        change = (parameter * parameter.grad).abs().detach()
        dims = [dim for dim, size in enumerate(parameter.shape) if size == 48]
        writes = "o_proj" in name or "down_proj" in name
        if dims:
            dim = 0 if writes or parameter.dim() == 1 else parameter.dim() - 1
            expected += change.transpose(0, dim).flatten(1).sum(1) if change.dim() > 1 else change
    torch.testing.assert_close(found.hidden, expected)
    plain = measure_importance(model, [IDS], TAYLOR)
    for layer, alone in zip(found.layers, plain.layers, strict=True):
        torch.testing.assert_close(layer.intermediate, alone.intermediate)
    assert plain.hidden is None


def test_activations_are_summed_over_the_norms(tiny_llama: PreTrainedModel) -> None:
    outputs: list[torch.Tensor] = []
    handles = [
        module.register_forward_hook(lambda _, _args, output: outputs.append(output))
        for name, module in tiny_llama.named_modules()
        if name.endswith("norm")
    ]
    logits(tiny_llama)
    for handle in handles:
        handle.remove()
    expected = sum(o.double().abs().mean(1).square().sum(0).sqrt() for o in outputs)
    found = measure_importance(tiny_llama, [IDS], ACTIVATION, hidden=True).hidden
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("axes", [("hidden",), ("hidden", "intermediate", "kv_group")])
@settings(deadline=None, max_examples=25)
@given(st.floats(0.35, 1.0), st.integers(0, 99))
def test_the_target_is_met_within_a_step(axes: tuple[Axis, ...], share: float, seed: int) -> None:
    geometry, base, model_scores = _measured()
    draw = torch.Generator().manual_seed(seed)
    scores = replace(model_scores, hidden=torch.rand(48, generator=draw))
    start = geometry.num_parameters(base)
    target = round(start * share)
    plan, _ = allocate(
        scores,
        base,
        geometry,
        target_num_parameters=target,
        allocation=Allocation(kind="uniform", constraints=FINE),
        axes=axes,
    )
    found = geometry.num_parameters(plan)
    hidden = 48 if plan.hidden is None else len(plan.hidden)
    assert found <= target or share == 1.0
    wider = plan.model_copy(update={"hidden": tuple(range(min(48, hidden + 12)))})
    if axes == ("hidden",) and hidden < 48:
        assert geometry.num_parameters(wider) > target
    assert hidden % 12 == 0
    assert plan.relative_to(base) == plan


FINE = Constraints(width_multiple=4, min_intermediate_size=4, hidden_multiple=4, min_hidden_size=12)


@functools.cache
def _measured() -> tuple[Geometry, PruningPlan, Scores]:
    model = make_tiny_model("llama")
    scores = measure_importance(model, [IDS], Importance(kind="magnitude"), hidden=True)
    return geometry_of(model), unpruned_plan(model), scores


def test_channels_that_are_owed_go_when_they_make_a_step() -> None:
    """A step of 12 channels is more than an increment's share: what is owed is carried on."""
    geometry, plan, scores = _measured()
    start, debt = geometry.num_parameters(plan), None
    hidden: list[int] = []
    for increment in range(1, 11):
        kept = plan.hidden or tuple(range(48))
        now = Scores(
            tuple(
                replace(
                    layer,
                    intermediate=layer.intermediate[list(of_plan.intermediate)],
                    kv_groups=layer.kv_groups[list(of_plan.kv_groups)],
                    query_heads=layer.query_heads[list(of_plan.kv_groups)],
                )
                for layer, of_plan in zip(scores.layers, plan.layers, strict=True)
            ),
            hidden=torch.ones(len(kept)),
        )
        plan, debt = allocate(
            now,
            plan,
            geometry,
            target_num_parameters=start - start * increment * 6 // 100,
            allocation=Allocation(kind="uniform", constraints=FINE),
            axes=("hidden", "intermediate", "kv_group"),
            debt=debt,
        )
        hidden.append(len(plan.hidden or kept))
    assert hidden[0] == 48
    assert hidden[-1] == 36


def test_the_most_important_channels_stay() -> None:
    geometry, base, scores = _measured()
    scores = replace(scores, hidden=torch.arange(48.0).flip(0))
    plan, _ = allocate(
        scores,
        base,
        geometry,
        target_num_parameters=round(geometry.num_parameters(base) * 0.8),
        allocation=Allocation(constraints=FINE),
        axes=("hidden",),
    )
    assert plan.hidden == tuple(range(len(plan.hidden or ())))


def test_a_stream_that_cannot_be_narrow_enough_names_the_floor() -> None:
    geometry, base, scores = _measured()
    with pytest.raises(TargetUnreachable, match="at least"):
        allocate(
            scores,
            base,
            geometry,
            target_num_parameters=100,
            allocation=Allocation(),
            axes=("hidden",),
        )


def test_a_run_ends_as_its_estimate_said(tmp_path: Path, tiny_model_dir: Path) -> None:
    recipe = make_recipe(
        tiny_model_dir,
        write_corpus(tmp_path / "text.jsonl"),
        target="45%",
        axes=["hidden"],
        importance={"kind": "activation"},
        compensation="none",
        allocation={"constraints": {"hidden_multiple": 4, "min_hidden_size": 12}},
    )
    finished: list[IncrementFinished] = []
    run(
        recipe,
        tmp_path / "out",
        lambda event: finished.append(event) if isinstance(event, IncrementFinished) else None,
        device="cpu",
    )
    config = AutoConfig.from_pretrained(tmp_path / "out" / finished[-1].directory)
    assert config.hidden_size < 48
    assert not config.is_heterogeneous
    expected = estimate(recipe, AutoConfig.from_pretrained(tiny_model_dir).to_dict())
    assert expected.floor_num_parameters <= finished[-1].num_parameters
    assert finished[-1].num_parameters <= expected.final_num_parameters
