"""Turning the residual stream changes nothing; slicing it afterwards leaves a stock model."""

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from pruning.errors import UnsupportedModel
from pruning.estimate import estimate
from pruning.events import IncrementFinished
from pruning.importance.energy import principal_components
from pruning.models.adapter import adapter_for
from pruning.models.families import FAMILIES as SUPPORTED
from pruning.models.geometry import count_parameters, geometry_of, unpruned_plan
from pruning.models.hidden import stream_norms
from pruning.models.rotation import free_stream, rotate_stream
from pruning.pipeline import run
from pruning.recipe import Recipe
from pruning.surgery import apply_plan
from tests.pruning.recipes import make_recipe, write_corpus
from tests.pruning.tiny import FAMILIES, make_tiny_model, random_ids

ROTATABLE = sorted(name for name in FAMILIES if SUPPORTED[name].rotatable)
BATCHES = [random_ids(seed=seed) for seed in (1, 2)]


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    return model(input_ids=random_ids()).logits


def turned(model: PreTrainedModel) -> PreTrainedModel:
    free_stream(model)
    rotate_stream(model, principal_components(model, BATCHES)[1])
    return model


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ROTATABLE)
def test_turning_the_stream_changes_no_logit(family: str, tied: bool) -> None:
    model = make_tiny_model(family, tied=tied)
    before = logits(model)
    size = count_parameters(model)
    turned(model)
    torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-4)
    head = model.get_output_embeddings().weight.numel()
    assert count_parameters(model) == size + tied * head


@pytest.mark.parametrize("family", ROTATABLE)
def test_plain_transformers_opens_a_sliced_model_bit_equal(family: str, tmp_path: Path) -> None:
    model = turned(make_tiny_model(family))
    base, geometry = unpruned_plan(model), geometry_of(model)
    plan = base.model_copy(update={"hidden": tuple(range(36))})
    apply_plan(model, plan, previous=base)
    assert count_parameters(model) == geometry.num_parameters(plan)
    model.save_pretrained(tmp_path)
    reopened = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert "per_layer_config" not in reopened.config.to_dict()
    assert torch.equal(logits(reopened), logits(model))


@torch.no_grad()
def test_the_stream_lies_along_its_channels_in_the_order_of_their_energy() -> None:
    model = make_tiny_model("llama")
    free_stream(model)
    energies, directions = principal_components(model, BATCHES)
    rotate_stream(model, directions)
    found, total = principal_components(model, BATCHES)[0], torch.zeros(48, dtype=torch.float64)

    def add(_norm: object, _args: object, output: torch.Tensor) -> None:
        total.add_(output.double().square().sum((0, 1)))

    for norm in stream_norms(adapter_for(model.config), model):
        norm.register_forward_hook(add)
    for ids in BATCHES:
        model(input_ids=ids)
    torch.testing.assert_close(found, energies, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(total, energies, rtol=1e-4, atol=1e-4)
    assert (energies.diff() <= 0).all()


def test_directions_that_nothing_uses_go_without_a_trace() -> None:
    """Embeddings and outputs that lie in a plane of half the channels leave the rest at zero."""
    model = make_tiny_model("llama", tied=False, attention_bias=False, mlp_bias=False)
    basis, _ = torch.linalg.qr(torch.randn(48, 24, generator=torch.Generator().manual_seed(0)))
    plane = basis @ basis.T
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed_tokens" in name:
                parameter.copy_(parameter @ plane)
            if "o_proj" in name or "down_proj" in name:
                parameter.copy_(plane @ parameter)
    before, base = logits(model), unpruned_plan(model)
    apply_plan(turned(model), base.model_copy(update={"hidden": tuple(range(24))}), previous=base)
    torch.testing.assert_close(logits(model), before, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - set(ROTATABLE)))
def test_norms_that_no_rotation_passes_are_refused(family: str) -> None:
    with pytest.raises(UnsupportedModel, match="rotated residual stream"):
        free_stream(make_tiny_model(family))


def sliced(model_dir: Path, corpus: Path, target: str) -> Recipe:
    return make_recipe(
        model_dir,
        corpus,
        method="slicegpt",
        target=target,
        importance={"calibration": {"num_samples": 8, "sequence_length": 32, "batch_size": 4}},
        allocation={"constraints": {"hidden_multiple": 2, "min_hidden_size": 6}},
        schedule={"num_increments": 1, "num_tokens": 0},
        recovery={"kind": "none"},
    )


def checkpoint_of(recipe: Recipe, out_dir: Path) -> Path:
    finished: list[IncrementFinished] = []
    run(
        recipe,
        out_dir,
        lambda event: finished.append(event) if isinstance(event, IncrementFinished) else None,
        device="cpu",
    )
    return out_dir / finished[-1].directory


def test_a_run_reaches_its_target_though_it_unties_the_head(
    tmp_path: Path, tiny_model_dir: Path
) -> None:
    recipe = sliced(tiny_model_dir, write_corpus(tmp_path / "text.jsonl"), "30%")
    directory = checkpoint_of(recipe, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(directory)
    expected = estimate(recipe, AutoConfig.from_pretrained(tiny_model_dir).to_dict())
    assert count_parameters(model) <= expected.final_num_parameters
    assert not model.config.tie_word_embeddings
    # Of 48, in steps that 6 heads divide: 30 % of the layers' parameters are 15 channels.
    assert model.config.hidden_size == 30


def test_nothing_changes_where_nothing_is_to_go(tmp_path: Path, tiny_model_dir: Path) -> None:
    recipe = sliced(tiny_model_dir, write_corpus(tmp_path / "text.jsonl"), "0%")
    recipe = recipe.model_copy(
        update={"output": recipe.output.model_copy(update={"dtype": "float32"})}
    )
    directory = checkpoint_of(recipe, tmp_path / "out")
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(directory)), logits(base))
