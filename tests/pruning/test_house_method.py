"""The house method on tiny models: moments, costs in nats, repair, and whole runs."""

import copy
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from pruning.allocation.widths import allowed_widths
from pruning.checkpoint import load_checkpoint
from pruning.compensation import refit_outputs
from pruning.errors import InvalidData
from pruning.importance.fisher import fisher_scores
from pruning.importance.measure import measure_importance
from pruning.importance.moments import Moments, gathering_inputs, measure_moments
from pruning.models.geometry import unpruned_plan
from pruning.models.loss import training_loss
from pruning.models.projections import output_projections
from pruning.pipeline import run
from pruning.plan import LayerPlan, PruningPlan
from pruning.recipe_parts.method import Axis, Constraints, Importance, ImportanceKind
from pruning.scores import Scores
from pruning.surgery import apply_mask, apply_plan
from tests.pruning.recipes import make_recipe, write_corpus
from tests.pruning.tiny import GROUPED, make_tiny_model, random_ids

RIDGE = 1e-6
CONSTRAINTS = Constraints(width_multiple=8, min_intermediate_size=8)
BATCHES = [random_ids(num_sequences=4, length=24, seed=seed) for seed in (1, 2)]


def measure(model: PreTrainedModel, *, gradients: bool = True) -> Moments:
    return measure_moments(model, BATCHES, precision="float32", gradients=gradients)


def score(model: PreTrainedModel, moments: Moments) -> Scores:
    def widths(axis: Axis, width: int) -> tuple[int, ...]:
        return allowed_widths(axis, width, CONSTRAINTS)

    return fisher_scores(model, moments, widths=widths, ridge=RIDGE)


def half(model: PreTrainedModel) -> PruningPlan:
    """Every other channel and the first two of three KV groups."""
    return PruningPlan(
        layers=tuple(
            LayerPlan(intermediate=layer.intermediate[::2], kv_groups=layer.kv_groups[:2])
            for layer in unpruned_plan(model).layers
        )
    )


def block_outputs(model: PreTrainedModel, ids_BT: torch.Tensor) -> list[torch.Tensor]:
    """What each output projection writes, in order."""
    outputs: list[torch.Tensor] = []
    handles = [
        tensor.module.register_forward_hook(lambda _m, _a, output: outputs.append(output))
        for tensor in output_projections(model).values()
    ]
    with torch.no_grad():
        model(ids_BT)
    for handle in handles:
        handle.remove()
    return outputs


@pytest.mark.parametrize("family", GROUPED)
def test_moments_are_means_over_all_tokens(family: str) -> None:
    model = make_tiny_model(family)
    moments = measure(model)
    forward_only = measure(model, gradients=False).inputs[1, "intermediate"]
    module = output_projections(model)[1, "intermediate"].module
    rows: list[torch.Tensor] = []
    grads: list[torch.Tensor] = []

    def keep(_module: object, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        rows.append(args[0].detach().flatten(0, 1))
        output.register_hook(lambda grad: grads.append(grad.flatten(0, 1)))

    handle = module.register_forward_hook(keep)
    for ids in BATCHES:
        training_loss(model, ids, "float32").backward()
    handle.remove()
    x, g = torch.cat(rows), torch.cat(grads)
    for found in (moments.inputs[1, "intermediate"], forward_only):
        torch.testing.assert_close(found, x.T @ x / len(x), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(
        moments.gradients[1, "intermediate"], g.T @ g / len(g), rtol=1e-3, atol=1e-6
    )


def test_measuring_leaves_the_model_as_it_was() -> None:
    model = make_tiny_model("llama").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    measure(model)
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_bf16_products_are_summed_in_fp32() -> None:
    """Moments rounded to bf16 are indefinite, and the elimination needs their inverse."""
    model = make_tiny_model("llama", intermediate_size=256)
    moments = measure_moments(model, BATCHES, precision="bfloat16", gradients=True)
    inputs = moments.inputs[0, "intermediate"]
    smallest, largest = torch.linalg.eigvalsh(inputs.double())[[0, -1]]
    assert float(smallest) > -1e-6 * float(largest)
    assert torch.equal(inputs, inputs.T)


@pytest.mark.parametrize("kind", ["taylor", "wanda"])
def test_inputs_gathered_beside_another_measurement_are_those_measured_alone(
    kind: ImportanceKind,
) -> None:
    model = make_tiny_model("llama")
    with gathering_inputs(model) as beside:
        measure_importance(model, BATCHES, Importance(kind=kind))
    alone = measure(model, gradients=False)
    assert beside.inputs.keys() == alone.inputs.keys()
    for key, expected in alone.inputs.items():
        torch.testing.assert_close(beside.inputs[key], expected)


def test_no_text_is_an_error() -> None:
    with pytest.raises(InvalidData):
        measure_moments(make_tiny_model("llama"), [], precision="float32", gradients=True)


@pytest.mark.parametrize("family", GROUPED)
def test_a_channel_that_does_nothing_goes_first_and_costs_nothing(family: str) -> None:
    model = make_tiny_model(family)
    with torch.no_grad():
        output_projections(model)[1, "intermediate"].parameter[:, [5, 9]] = 0
    scores = score(model, measure(model)).layers[1]
    assert scores.removals["intermediate"].order[:2].sort().values.tolist() == [5, 9]
    assert scores.intermediate[[5, 9]].abs().max() < 1e-9
    assert scores.query_heads.shape == (3, 2)


@pytest.mark.parametrize("family", GROUPED)
def test_repair_brings_each_block_closer_to_what_it_wrote(family: str) -> None:
    """Blocks are compared in the first layer, whose inputs no cut has changed."""
    model = make_tiny_model(family)
    plan, previous = half(model), unpruned_plan(model)
    moments = measure(model)
    bare, repaired = copy.deepcopy(model), copy.deepcopy(model)
    refit_outputs(repaired, plan, previous=previous, inputs=moments.inputs, ridge=RIDGE)
    apply_plan(bare, plan, previous=previous)
    apply_plan(repaired, plan, previous=previous)
    ids = torch.cat(BATCHES)
    written = block_outputs(model, ids)[1]
    error_bare = (block_outputs(bare, ids)[1] - written).square().sum()
    error_repaired = (block_outputs(repaired, ids)[1] - written).square().sum()
    assert error_repaired < error_bare


def test_repair_then_cut_equals_repair_then_mask() -> None:
    model = make_tiny_model("llama")
    plan, previous = half(model), unpruned_plan(model)
    refit_outputs(model, plan, previous=previous, inputs=measure(model).inputs, ridge=RIDGE)
    masked = copy.deepcopy(model)
    apply_mask(masked, plan, previous=previous)
    apply_plan(model, plan, previous=previous)
    ids = random_ids()
    torch.testing.assert_close(model(ids).logits, masked(ids).logits, rtol=1e-4, atol=1e-4)


def test_a_plan_that_cuts_nothing_repairs_nothing() -> None:
    model = make_tiny_model("llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plan = unpruned_plan(model)
    refit_outputs(model, plan, previous=plan, inputs=measure(model).inputs, ridge=RIDGE)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_run_with_the_house_method_reaches_its_target(
    tmp_path: Path, tiny_model_dir: Path
) -> None:
    recipe = make_recipe(
        tiny_model_dir,
        write_corpus(tmp_path / "corpus.jsonl"),
        method="espalier",
        schedule={"num_increments": 2, "num_tokens": 8 * 256, "token_share": "constant"},
    )
    outcome = run(recipe, tmp_path / "out", lambda _event: None, device="cpu")
    manifest = load_checkpoint(tmp_path / "out" / "increment-0002").manifest
    assert outcome == "target_reached"
    step = 8 * 3 * 48
    assert (
        manifest.target_num_parameters - step
        < manifest.num_parameters
        <= manifest.target_num_parameters
    )
    assert all(len(layer.intermediate) % 8 == 0 for layer in manifest.plan.layers)


def test_a_run_without_training_is_the_staged_pruning_alone(
    tmp_path: Path, tiny_model_dir: Path
) -> None:
    recipe = make_recipe(
        tiny_model_dir,
        write_corpus(tmp_path / "corpus.jsonl"),
        method="espalier",
        recovery={"kind": "none", "precision": "float32"},
    )
    events: list[object] = []
    run(recipe, tmp_path / "out", events.append, device="cpu")
    assert sum(getattr(event, "type", "") == "prune_finished" for event in events) == 3
    assert not any(getattr(event, "type", "") == "step_finished" for event in events)
