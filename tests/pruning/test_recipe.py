"""What a request becomes: presets give way to what was written or makes them senseless."""

from typing import Any

import pytest
from pydantic import ValidationError

from pruning.presets import PRESETS
from pruning.recipe import Recipe

REPAIRING = [name for name, preset in PRESETS.items() if preset["compensation"] != "none"]
DEPTHS = [["layer"], ["attention_block"], ["attention_block", "mlp_block"]]


def recipe(**changes: Any) -> Recipe:
    return Recipe.model_validate({"model": "a/model", "target": "30%", "data": "a/text", **changes})


@pytest.mark.parametrize("axes", DEPTHS)
@pytest.mark.parametrize("method", REPAIRING)
def test_a_presets_repair_yields_where_whole_blocks_go(method: str, axes: list[str]) -> None:
    assert recipe(method=method, axes=axes).compensation == "none"


def test_asking_to_repair_whole_blocks_is_a_contradiction() -> None:
    with pytest.raises(ValidationError, match="compensation must be 'none'"):
        recipe(axes=["layer"], compensation="least_squares")


def test_a_presets_repair_stays_where_blocks_are_thinned_out() -> None:
    assert recipe(axes=["intermediate"]).compensation == "least_squares"


@pytest.mark.parametrize(
    ("changes", "compensation"),
    [
        ({"recovery": {"kind": "none"}}, "newton"),
        ({}, "least_squares"),
        ({"recovery": {"kind": "lora"}}, "least_squares"),
        ({"recovery": {"kind": "none"}, "importance": {"kind": "taylor"}}, "least_squares"),
    ],
)
def test_the_default_takes_a_newton_step_where_nothing_else_would(
    changes: dict[str, Any], compensation: str
) -> None:
    assert recipe(**changes).compensation == compensation


def test_a_presets_mixture_reaches_data_given_in_short() -> None:
    assert recipe(method="sheared_llama").data.mixture.kind == "dynamic"


def test_a_presets_mixture_yields_to_an_evaluation_text() -> None:
    data = {"train": "a/text", "evaluation": "another/text"}
    assert recipe(method="sheared_llama", data=data).data.mixture.kind == "static"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": {"kind": "learned_mask"}}, "needs importance.kind 'learned_mask'"),
        ({"method": "sheared_llama", "axes": ["mlp_block"]}, "axes must be among them"),
        ({"method": "efficientllm", "recovery": {"kind": "lora"}}, "must be 'full' or 'none'"),
    ],
)
def test_a_contradiction_that_was_asked_for_is_named(changes: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        recipe(**changes)


def test_a_resolved_recipe_resolves_to_itself() -> None:
    resolved = recipe(axes=["layer"])
    assert Recipe.model_validate_json(resolved.model_dump_json()) == resolved
