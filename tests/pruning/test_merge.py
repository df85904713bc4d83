"""Merging: a channel that goes hands its part to the one most like it."""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from pruning.compensation import merge_similar
from pruning.events import PruneFinished
from pruning.importance.moments import measure_moments
from pruning.models.geometry import unpruned_plan
from pruning.models.projections import BlockKey, output_projections
from pruning.pipeline import run
from pruning.plan import LayerPlan, PruningPlan
from pruning.surgery import apply_plan
from tests.pruning.recipes import make_recipe, write_corpus
from tests.pruning.test_surgery import logits, random_plan
from tests.pruning.tiny import make_tiny_model, random_ids

CALIBRATION = {"num_samples": 8, "sequence_length": 32, "batch_size": 4}


def input_moments(model: PreTrainedModel) -> dict[BlockKey, torch.Tensor]:
    batches = [random_ids(num_sequences=4, length=32, seed=7)]
    return dict(measure_moments(model, batches, precision="float32", gradients=False).inputs)


def without_channel(model: PreTrainedModel, channel: int) -> PruningPlan:
    """The plan that takes one channel of each layer."""
    return PruningPlan(
        layers=tuple(
            LayerPlan(
                intermediate=tuple(c for c in layer.intermediate if c != channel),
                kv_groups=layer.kv_groups,
            )
            for layer in unpruned_plan(model).layers
        )
    )


@pytest.mark.parametrize("factor", [1.0, -2.5])
def test_a_channel_that_follows_another_goes_without_loss(
    factor: float, tiny_llama: PreTrainedModel
) -> None:
    for layer in tiny_llama.model.layers:
        mlp = layer.mlp
        mlp.gate_proj.weight.data[3] = mlp.gate_proj.weight.data[20]
        mlp.up_proj.weight.data[3] = factor * mlp.up_proj.weight.data[20]
    plan, base = without_channel(tiny_llama, 3), unpruned_plan(tiny_llama)
    before = logits(tiny_llama)
    merge_similar(tiny_llama, plan, previous=base, inputs=input_moments(tiny_llama))
    apply_plan(tiny_llama, plan, previous=base)
    assert (logits(tiny_llama) - before).abs().max() < 1e-5


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "phi3"])
def test_merging_one_channel_leaves_no_larger_error_than_dropping_it(family: str) -> None:
    model = make_tiny_model(family)
    inputs, plan = input_moments(model), without_channel(model, 5)
    before = {key: t.parameter.detach().clone() for key, t in output_projections(model).items()}
    merge_similar(model, plan, previous=unpruned_plan(model), inputs=inputs)
    for key, tensor in output_projections(model).items():
        dropped_OI = before[key].clone()
        if key[1] == "intermediate":
            dropped_OI[:, 5] = 0
        missed, missed_by_dropping = (
            ((w - before[key]) @ inputs[key] @ (w - before[key]).T).trace()
            for w in (tensor.parameter, dropped_OI)
        )
        assert missed <= missed_by_dropping * (1 + 1e-5)


@pytest.mark.parametrize("compensation", ["merge", "affine"])
def test_a_run_repairs_its_cuts_as_asked(
    compensation: str, tiny_model_dir: Path, tmp_path: Path
) -> None:
    recipe = make_recipe(
        tiny_model_dir,
        write_corpus(tmp_path / "text.jsonl"),
        importance={"kind": "taylor", "calibration": CALIBRATION},
        compensation=compensation,
        recovery={"kind": "none"},
        schedule={"num_increments": 2},
    )
    sizes: list[int] = []
    run(
        recipe,
        tmp_path / "out",
        lambda event: (
            sizes.append(event.num_parameters) if isinstance(event, PruneFinished) else None
        ),
        device="cpu",
    )
    assert len(sizes) == 2
    assert sizes[1] < sizes[0]


def test_merging_then_cutting_equals_merging_alone(tiny_llama: PreTrainedModel) -> None:
    plan, base = random_plan(tiny_llama), unpruned_plan(tiny_llama)
    merge_similar(tiny_llama, plan, previous=base, inputs=input_moments(tiny_llama))
    merged = logits(tiny_llama)
    apply_plan(tiny_llama, plan, previous=base)
    assert (logits(tiny_llama) - merged).abs().max() < 1e-5
