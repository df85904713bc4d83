"""FLAP's bias: what a cut loses on average is kept."""

import copy
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from pruning.compensation import fold_means, refit_with_biases
from pruning.errors import UnsupportedModel
from pruning.importance.measure import measure_importance
from pruning.importance.moments import measure_moments
from pruning.models.biases import add_biases
from pruning.models.families import FAMILIES as SUPPORTED
from pruning.models.geometry import unpruned_plan
from pruning.models.projections import output_projections
from pruning.plan import PruningPlan
from pruning.recipe_parts.method import Importance
from pruning.surgery import apply_mask, apply_plan
from tests.pruning.tiny import FAMILIES, make_tiny_model, random_ids

WITH_BIASES = [name for name, family in SUPPORTED.items() if family.bias_flags]
BATCHES = [random_ids(seed=seed, length=32) for seed in (1, 2, 3)]


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    return model(input_ids=random_ids()).logits


def plain_model(family: str) -> PreTrainedModel:
    return make_tiny_model(family, attention_bias=False, mlp_bias=False)


def without_last(plan: PruningPlan, num_channels: int) -> PruningPlan:
    """Every layer loses its last channels and its last KV group."""
    return PruningPlan(
        layers=tuple(
            layer.model_copy(
                update={
                    "intermediate": layer.intermediate[:-num_channels],
                    "kv_groups": layer.kv_groups[:-1],
                }
            )
            for layer in plan.layers
        )
    )


def compensate(model: PreTrainedModel, plan: PruningPlan) -> None:
    base = unpruned_plan(model)
    scores = measure_importance(model, BATCHES, Importance(kind="fluctuation"), input_means=True)
    fold_means(model, plan, previous=base, scores=scores)
    apply_plan(model, plan, previous=base)


@pytest.mark.parametrize("family", WITH_BIASES)
def test_biases_of_zero_change_nothing_and_stock_transformers_opens_them(
    family: str, tmp_path: Path
) -> None:
    model = plain_model(family)
    before = logits(model)
    add_biases(model)
    assert torch.equal(logits(model), before)
    names = {name for name, _ in model.named_parameters() if name.endswith("bias")}
    assert len(names) == 3 * 7
    model.save_pretrained(tmp_path)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert {name for name, _ in opened.named_parameters() if name.endswith("bias")} == names


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - set(WITH_BIASES)))
def test_families_whose_code_has_no_such_biases_are_refused(family: str) -> None:
    with pytest.raises(UnsupportedModel, match="has no biases"):
        add_biases(make_tiny_model(family))


def test_channels_that_never_change_go_without_any_loss() -> None:
    model = make_tiny_model("llama", attention_bias=True, mlp_bias=True)
    with torch.no_grad():
        for index in range(3):
            mlp = model.get_submodule(f"model.layers.{index}.mlp")
            attention = model.get_submodule(f"model.layers.{index}.self_attn")
            for linear in (mlp.gate_proj, mlp.up_proj):
                linear.weight[-8:] = 0
            attention.v_proj.weight[-8:] = 0
    uncut = copy.deepcopy(model)
    scores = measure_importance(model, BATCHES, Importance(kind="fluctuation"), input_means=True)
    # Attention averages values with weights that sum to 1 only up to rounding.
    assert scores.layers[1].intermediate[-8:].abs().max() < 1e-12
    assert scores.layers[1].kv_groups[-1] < 1e-9
    plan = without_last(unpruned_plan(model), 8)
    compensate(model, plan)
    assert (logits(model) - logits(uncut)).abs().max() < 2e-5
    plain = copy.deepcopy(uncut)
    apply_plan(plain, plan, previous=unpruned_plan(uncut))
    assert (logits(plain) - logits(uncut)).abs().max() > 0.01


@pytest.mark.parametrize("family", WITH_BIASES)
def test_the_bias_brings_a_layer_closer_to_what_it_computed(family: str) -> None:
    """On the calibration text no constant comes closer to the lost part than its mean."""
    model = plain_model(family)
    add_biases(model)
    outputs: list[torch.Tensor] = []

    def first_mlp(changed: PreTrainedModel) -> torch.Tensor:
        outputs.clear()
        mlp = changed.get_submodule("model.layers.0.mlp")
        handle = mlp.register_forward_hook(lambda *args: outputs.append(args[2]))
        with torch.no_grad():
            for ids in BATCHES:
                changed(input_ids=ids)
        handle.remove()
        return torch.cat(outputs)

    base = unpruned_plan(model)
    fewer = base.layers[0].model_copy(update={"intermediate": base.layers[0].intermediate[::2]})
    plan = PruningPlan(layers=(fewer, *base.layers[1:]))
    whole, plain = first_mlp(model), copy.deepcopy(model)
    apply_plan(plain, plan, previous=base)
    compensate(model, plan)
    error, plain_error = ((first_mlp(cut) - whole).square().mean().item() for cut in (model, plain))
    assert error < plain_error


@pytest.mark.parametrize("family", WITH_BIASES)
def test_affine_repair_is_never_worse_than_the_bias_nor_that_than_nothing(family: str) -> None:
    """Of every block's output, on the calibration text, as the ridge goes to zero."""
    model = plain_model(family)
    add_biases(model)
    base = unpruned_plan(model)
    plan = PruningPlan(
        layers=tuple(
            layer.model_copy(
                update={"intermediate": layer.intermediate[::2], "kv_groups": layer.kv_groups[:1]}
            )
            for layer in base.layers
        )
    )
    inputs = measure_moments(model, BATCHES, precision="float32", gradients=False).inputs
    scores = measure_importance(model, BATCHES, Importance(kind="fluctuation"), input_means=True)
    dropped, folded, refitted = (copy.deepcopy(model) for _ in range(3))
    apply_mask(dropped, plan, previous=base)
    fold_means(folded, plan, previous=base, scores=scores)
    refit_with_biases(refitted, plan, previous=base, inputs=inputs, scores=scores, ridge=1e-9)
    for key, tensor in output_projections(model).items():
        layer, axis = key
        mean_I = scores.layers[layer].input_means[axis]
        errors = []
        for changed in (refitted, folded, dropped):
            other = output_projections(changed)[key]
            lost_OI = (tensor.parameter - other.parameter).detach().double()
            constant_O = (tensor.module.bias - other.module.bias).detach().double()
            cross = 2 * (lost_OI @ mean_I) @ constant_O
            squared = (lost_OI @ inputs[key].double() @ lost_OI.T).trace()
            errors.append((squared + cross + constant_O @ constant_O).item())
        affine, bias, none = errors
        assert affine <= bias * (1 + 1e-4)
        assert bias <= none * (1 + 1e-4)
