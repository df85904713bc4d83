"""What the recipe makes of the engines it is to be served with."""

from typing import Any

import pytest
from pydantic import ValidationError

from pruning.errors import ExportRefused
from pruning.export.gguf import FAMILIES
from pruning.recipe import Recipe
from pruning.serving import LLAMA_CPP_FAMILIES, check_model

RECIPE: dict[str, Any] = {"model": "org/name", "target": "30%", "data": "org/text"}


def resolve(**fields: Any) -> Recipe:
    return Recipe.model_validate({**RECIPE, **fields})


def test_tensor_parallel_becomes_a_constraint_on_every_width() -> None:
    constraints = resolve(tensor_parallel=3, serve_with=["vllm"]).allocation.constraints
    assert (constraints.tensor_parallel, constraints.width_multiple) == (3, 96)


def test_llama_cpp_asks_for_whole_quantisation_blocks() -> None:
    with pytest.raises(ValidationError, match="width_multiple: 8 is no multiple of 32"):
        resolve(serve_with=["llama.cpp"], allocation={"constraints": {"width_multiple": 8}})


def test_a_quantised_export_asks_the_same_as_its_engine() -> None:
    with pytest.raises(ValidationError, match="width_multiple"):
        resolve(
            output={"exports": ["gguf:q4_0"]}, allocation={"constraints": {"width_multiple": 8}}
        )


def test_engines_for_equal_layers_choose_the_uniform_layout() -> None:
    assert resolve(serve_with=["sglang"]).allocation.layout == "uniform"


def test_such_an_engine_and_unequal_layers_are_refused() -> None:
    with pytest.raises(ValidationError, match="sglang run models with equal layers only"):
        resolve(serve_with=["sglang"], allocation={"layout": "per_layer"})


def test_the_padded_export_serves_them_whatever_the_layers() -> None:
    recipe = resolve(serve_with=["mlx"], output={"exports": ["padded"]})
    assert recipe.allocation.layout == "per_layer"


def test_contradicting_devices_are_refused() -> None:
    with pytest.raises(ValidationError, match="is no multiple of tensor_parallel"):
        resolve(tensor_parallel=4, allocation={"constraints": {"tensor_parallel": 2}})


def test_a_resolved_recipe_resolves_to_itself() -> None:
    recipe = resolve(tensor_parallel=2, serve_with=["llama.cpp", "tensorrt-llm"])
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_unknown_exports_are_refused() -> None:
    with pytest.raises(ValidationError, match="exports"):
        resolve(output={"exports": ["gguf:q4_k"]})


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (
            {"serve_with": ["llama.cpp"], "axes": ["mlp_block"]},
            "axes: llama.cpp computes layers without an MLP wrongly",
        ),
        (
            {"output": {"exports": ["remote_code"]}, "axes": ["attention_block"]},
            "'remote_code' does not go with 'attention_block'",
        ),
        (
            {"output": {"exports": ["nemotron_nas"]}, "axes": ["intermediate", "kv_group"]},
            "leave kv_group out of axes",
        ),
        (
            {"output": {"exports": ["nemotron_nas"]}, "axes": ["attention_block"]},
            "add 0 to allocation.constraints.protected_layers",
        ),
        (
            {
                "serve_with": ["vllm"],
                "axes": ["hidden"],
                "importance": {"kind": "pca_energy", "rotation": "per_block"},
                "schedule": {"num_increments": 1},
            },
            "importance.rotation: vllm has no place for the shortcuts",
        ),
        (
            {
                "serve_with": ["llama.cpp"],
                "axes": ["hidden"],
                "importance": {"kind": "pca_energy"},
                "allocation": {"constraints": {"hidden_multiple": 8}},
            },
            "hidden_multiple: 8 is no multiple of 32",
        ),
    ],
)
def test_axes_that_an_engine_has_no_place_for_are_refused(
    fields: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValidationError, match=reason):
        resolve(**{"compensation": "none", **fields})


def test_equal_heads_are_what_vllms_own_format_wants() -> None:
    uniform = resolve(output={"exports": ["nemotron_nas"]}, allocation={"layout": "uniform"})
    assert uniform.axes == ("intermediate", "kv_group")


@pytest.mark.parametrize(
    ("exports", "model_type", "tied", "layout", "axes", "reason"),
    [
        ([], "gemma2", True, "uniform", (), "no GGUF file is written for model_type 'gemma2'"),
        ([], "qwen3", False, "per_layer", (), "output head shared with the embeddings"),
        ([], "qwen3", True, "per_layer", ("attention_block",), "wants attention in every layer"),
        (["nemotron_nas"], "granite", True, "per_layer", (), "computes no model_type 'granite'"),
    ],
)
def test_a_model_that_an_engine_has_no_graph_for_is_refused(
    exports: list[str],
    model_type: str,
    tied: bool,
    layout: str,
    axes: tuple[str, ...],
    reason: str,
) -> None:
    with pytest.raises(ExportRefused, match=reason):
        check_model(
            ["llama.cpp"], exports, model_type=model_type, tied=tied, layout=layout, axes=axes
        )


def test_the_families_said_at_submission_are_the_writers() -> None:
    assert set(LLAMA_CPP_FAMILIES) == set(FAMILIES)
