"""The Newton step after a cut: towards less loss on text it was not measured on, or none at all."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from transformers import PreTrainedModel

from pruning.checkpoint import load_checkpoint
from pruning.errors import InvalidData
from pruning.importance.moments import Moments, measure_moments
from pruning.models.geometry import unpruned_plan
from pruning.models.loss import training_loss
from pruning.newton import StepTaken, take_newton_step, thin_moments
from pruning.pipeline import run
from pruning.plan import LayerPlan, PruningPlan
from tests.pruning.recipes import make_recipe, write_corpus
from tests.pruning.tiny import GROUPED, make_tiny_model, random_ids

Batches = list[torch.Tensor]


def pattern(*tokens: int, num_batches: int) -> Batches:
    """Batches [2, 24] that repeat a few tokens, beginning anywhere: something to learn."""
    repeated = torch.tensor(tokens).repeat(24)
    return [
        torch.stack([repeated[start : start + 24] for start in (batch, batch + 1)])
        for batch in range(num_batches)
    ]


@torch.no_grad()
def mean_loss(model: PreTrainedModel, batches: Batches) -> float:
    losses = [float(training_loss(model, ids, "float32")) for ids in batches]
    return sum(losses) / sum(ids.numel() for ids in batches)


def moments_of(model: PreTrainedModel, batches: Batches) -> Moments:
    return measure_moments(model, batches, precision="float32", gradients=True)


def step(model: PreTrainedModel, batches: Batches) -> StepTaken:
    return take_newton_step(model, batches, moments_of(model, batches), precision="float32")


def weights_of(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("family", GROUPED)
def test_the_step_lowers_the_loss_of_text_it_was_not_measured_on(family: str) -> None:
    model = make_tiny_model(family)
    *measured, unseen = pattern(5, 9, 200, 31, 7, num_batches=6)
    before = mean_loss(model, [unseen])
    taken = step(model, measured)
    assert taken.length > 0
    assert taken.loss_after < taken.loss_before
    assert mean_loss(model, [unseen]) < before


def test_the_loss_it_reports_is_that_of_the_last_batch() -> None:
    model = make_tiny_model("llama")
    batches = pattern(5, 9, 200, num_batches=4)
    before = mean_loss(model, batches[-1:])
    taken = step(model, batches)
    assert taken.loss_before == pytest.approx(before, rel=1e-5)
    assert taken.loss_after == pytest.approx(mean_loss(model, batches[-1:]), rel=1e-5)


def test_a_step_that_other_text_does_not_confirm_is_not_taken() -> None:
    model = make_tiny_model("llama")
    # After 9 comes 9 in the text that is measured, and anything else where lengths are tried.
    measured = [torch.full((2, 24), 9)] * 3
    trial = [torch.tensor([(9, other) for other in range(10, 40)])]
    before = weights_of(model)
    taken = step(model, [*measured, *trial])
    assert taken.length == 0
    assert taken.loss_after == taken.loss_before
    assert all(torch.equal(value, before[name]) for name, value in weights_of(model).items())


def test_only_output_projections_change_and_nothing_else_is_left_behind() -> None:
    model = make_tiny_model("llama").train()
    before = weights_of(model)
    step(model, pattern(5, 9, 200, num_batches=4))
    changed = {n for n, value in weights_of(model).items() if not torch.equal(value, before[n])}
    assert changed == {
        f"model.layers.{layer}.{name}.weight"
        for layer in range(3)
        for name in ("self_attn.o_proj", "mlp.down_proj")
    }
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_moments_are_kept_for_the_inputs_that_a_plan_keeps() -> None:
    model = make_tiny_model("llama")
    moments = moments_of(model, [random_ids()])
    whole = dict(moments.inputs)
    previous = unpruned_plan(model)
    first, *others = previous.layers
    thinner = LayerPlan(intermediate=first.intermediate[::2], kv_groups=first.kv_groups)
    thin_moments(model, moments, PruningPlan(layers=(thinner, *others)), previous=previous)
    thinned = whole.pop((0, "intermediate"))[::2, ::2]
    torch.testing.assert_close(moments.inputs[0, "intermediate"], thinned)
    assert all(torch.equal(moments.inputs[key], matrix) for key, matrix in whole.items())


def test_a_single_batch_is_refused() -> None:
    with pytest.raises(InvalidData, match="one batch"):
        step(make_tiny_model("llama"), [random_ids()])


def test_a_cut_followed_by_a_step_predicts_better_than_the_cut_alone(
    tmp_path: Path, tiny_model_dir: Path
) -> None:
    corpus = write_corpus(tmp_path / "corpus.jsonl")
    found = {}
    for compensation in ("least_squares", "newton"):
        recipe = make_recipe(
            tiny_model_dir,
            corpus,
            method="espalier",
            compensation=compensation,
            recovery={"kind": "none", "precision": "float32"},
            schedule={"num_increments": 2},
            importance={"calibration": {"num_samples": 32, "sequence_length": 32, "batch_size": 4}},
        )
        out = tmp_path / compensation
        run(recipe, out, lambda _event: None, device="cpu")
        manifest = load_checkpoint(out / "increment-0002").manifest
        (found[compensation],) = (
            m.value
            for m in manifest.measurements
            if (m.stage, m.increment, m.suite) == ("pruned", 2, "perplexity")
        )
    assert found["newton"] < found["least_squares"]


def test_a_step_needs_a_criterion_that_measures_curvature(tiny_model_dir: Path) -> None:
    with pytest.raises(ValidationError, match=r"importance\.kind 'fisher'"):
        make_recipe(tiny_model_dir, Path("corpus"), method="adapt_pruner", compensation="newton")
