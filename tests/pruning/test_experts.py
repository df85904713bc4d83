"""Experts: scored, allotted and cut layer by layer, and never fewer than a token passes through."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import espalier.loading  # noqa: F401  # Opens models whose layers differ.
from pruning.errors import InvalidPlan, UnsupportedModel
from pruning.events import IncrementFinished
from pruning.importance.measure import measure_importance
from pruning.models.geometry import count_parameters, layer_widths, unpruned_plan
from pruning.pipeline import run
from pruning.plan import PruningPlan
from pruning.recipe import Recipe
from pruning.recipe_parts.method import Importance
from pruning.surgery import apply_mask, apply_plan
from tests.pruning.recipes import make_recipe, write_corpus
from tests.pruning.tiny import make_tiny_model, random_ids


@pytest.fixture
def sparse_model_dir(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    make_tiny_model("qwen3_moe").save_pretrained(tmp_path / "moe")
    tiny_tokenizer.save_pretrained(tmp_path / "moe")
    return tmp_path / "moe"


def recipe_of(model_dir: Path, corpus: Path, axis: str, target: str) -> Recipe:
    return make_recipe(
        model_dir,
        corpus,
        method="adapt_pruner",
        target=target,
        axes=[axis],
        output={"dtype": "float32"},
    )


@pytest.mark.parametrize(("axis", "target"), [("expert", "25%"), ("intermediate", "30%")])
def test_a_run_meets_its_target(
    axis: str, target: str, sparse_model_dir: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(sparse_model_dir, write_corpus(tmp_path / "text.jsonl"), axis, target)
    finished: list[IncrementFinished] = []
    run(
        recipe,
        tmp_path / "out",
        lambda event: finished.append(event) if isinstance(event, IncrementFinished) else None,
        device="cpu",
    )
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / finished[-1].directory)
    whole = AutoModelForCausalLM.from_pretrained(sparse_model_dir)
    assert count_parameters(model) == finished[-1].num_parameters < count_parameters(whole)
    experts = [layer.num_experts for layer in layer_widths(model)]
    assert experts[1] is None
    assert all(number >= 2 for number in experts if number is not None)
    assert (min(number or 6 for number in experts) < 6) == (axis == "expert")


def test_methods_that_look_inside_experts_are_refused(
    sparse_model_dir: Path, tmp_path: Path
) -> None:
    recipe = make_recipe(sparse_model_dir, write_corpus(tmp_path / "text.jsonl"))
    with pytest.raises(UnsupportedModel, match="inside its experts"):
        run(recipe, tmp_path / "out", lambda _: None, device="cpu")


def test_an_expert_counts_its_row_of_the_router() -> None:
    model = make_tiny_model("qwen3_moe")
    found = measure_importance(model, [random_ids()], Importance(kind="magnitude")).layers[0]
    mlp = model.get_submodule("model.layers.0.mlp")
    weights = (mlp.experts.gate_up_proj, mlp.experts.down_proj, mlp.gate.weight)
    expected = sum(weight.detach().square().flatten(1).sum(1) for weight in weights)
    torch.testing.assert_close(found.experts, expected)
    assert found.intermediate.shape == (16,)


def test_too_few_experts_for_a_token_are_refused() -> None:
    model = make_tiny_model("qwen3_moe")
    base = unpruned_plan(model)
    one = base.layers[0].model_copy(update={"experts": (3,)})
    with pytest.raises(InvalidPlan, match="passes through 2 experts"):
        apply_plan(model, PruningPlan(layers=(one, *base.layers[1:])), previous=base)


@torch.no_grad()
def test_masked_experts_get_no_token() -> None:
    model = make_tiny_model("qwen3_moe", norm_topk_prob=True)
    base = unpruned_plan(model)
    some = base.layers[0].model_copy(update={"experts": (1, 2, 5)})
    apply_mask(model, PruningPlan(layers=(some, *base.layers[1:])), previous=base)
    chosen: list[torch.Tensor] = []
    gate = model.get_submodule("model.layers.0.mlp.gate")
    gate.register_forward_hook(lambda _, _args, output: chosen.append(output[2]))
    model(input_ids=random_ids())
    assert set(chosen[0].flatten().tolist()) <= {1, 2, 5}
