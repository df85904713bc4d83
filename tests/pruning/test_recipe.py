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


CHATS = {"kind": "hub", "id": "org/chats", "messages_field": "messages"}
GATED = {"kind": "hub", "id": "org/gated", "credential": "cred_" + "1" * 32}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data": {"train": CHATS}, "recovery": {"separate_documents": True}},
            "data.train.0.source has conversations",
        ),
        (
            {"evaluation": {"suites": [{"kind": "perplexity", "name": "a", "source": CHATS}]}},
            "evaluation.suites.0.source takes text",
        ),
        (
            {
                "data": {"train": GATED},
                "model": {"source": "hub", "id": "a/model", "credential": "cred_" + "2" * 32},
            },
            "one credential",
        ),
    ],
    ids=["separated conversations", "perplexity of conversations", "two credentials"],
)
def test_what_cannot_go_together_is_named(changes: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        recipe(**changes)


def test_a_recipe_goes_by_the_credential_of_its_model_or_its_text() -> None:
    assert recipe().credential is None
    assert recipe(data={"train": GATED}).credential == (
        "data.train.0.source.credential",
        GATED["credential"],
    )


@pytest.mark.parametrize(
    ("changes", "allocation"),
    [
        ({}, "layer_adaptive"),
        ({"recovery": {"kind": "lora"}}, "layer_adaptive"),
        ({"recovery": {"kind": "none"}}, "layer_adaptive"),
        ({"allocation": {"kind": "equal_marginal"}}, "equal_marginal"),
        ({"method": "efficientllm"}, "equal_marginal"),
    ],
)
def test_the_default_spreads_sparsity_by_what_whole_blocks_are_worth(
    changes: dict[str, Any], allocation: str
) -> None:
    assert recipe(**changes).allocation.kind == allocation
