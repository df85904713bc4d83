"""Estimates agree with the models and the runs they foretell."""

import subprocess
import sys
import time
from typing import Any

import pytest

from pruning.errors import InvalidModel, TargetUnreachable, UnsupportedModel
from pruning.estimate import estimate
from pruning.models.architecture import read_architecture
from pruning.models.geometry import (
    count_parameters,
    count_prunable_parameters,
    unpruned_plan,
)
from pruning.plan import PruningPlan
from pruning.recipe import Recipe
from pruning.surgery import apply_plan
from tests.pruning.tiny import FAMILIES, make_tiny_model
from tests.smollm2 import CONFIG


def recipe(target: Any = "20%", **fields: Any) -> Recipe:
    data = {"train": {"kind": "inline", "documents": ["Some text."]}}
    return Recipe.model_validate({"model": "org/tiny", "target": target, "data": data, **fields})


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_parameters_are_counted_as_the_model_has_them(family: str, tied: bool) -> None:
    model = make_tiny_model(family, tied=tied)
    found = read_architecture(model.config.to_diff_dict())
    assert found.num_parameters == count_parameters(model)
    assert found.num_prunable_parameters == count_prunable_parameters(model)


def test_a_model_that_was_pruned_layer_by_layer_is_counted_by_its_own_widths() -> None:
    narrow = {"intermediate_size": 768, "num_attention_heads": 6, "num_key_value_heads": 2}
    whole = estimate(recipe("0%"), {**CONFIG, "head_dim": 64})
    cut = estimate(recipe("0%"), {**CONFIG, "head_dim": 64, "per_layer_config": {"3": narrow}})
    lost = 768 * 3 * 576 + 64 * 576 * (2 * 3 + 2)
    assert whole.num_parameters - cut.num_parameters == lost


def test_a_known_model_has_its_published_size() -> None:
    assert estimate(recipe(), CONFIG).num_parameters == 134_515_008


def test_the_floor_is_what_the_constraints_leave() -> None:
    floor = estimate(recipe(), CONFIG).floor_num_parameters
    assert estimate(recipe(floor), CONFIG).final_num_parameters == floor
    with pytest.raises(TargetUnreachable) as refused:
        estimate(recipe(floor - 1), CONFIG)
    assert refused.value.limit == floor


def test_protected_layers_raise_the_floor() -> None:
    protected = {"constraints": {"protected_layers": [0, 1]}}
    floors = [
        estimate(recipe(allocation=allocation), CONFIG).floor_num_parameters
        for allocation in ({}, protected)
    ]
    assert floors[0] < floors[1]


def test_a_target_above_the_model_names_the_models_size() -> None:
    with pytest.raises(TargetUnreachable) as refused:
        estimate(recipe("200M"), CONFIG)
    assert refused.value.limit == 134_515_008


def test_every_target_of_a_family_is_the_size_of_an_increment() -> None:
    found = estimate(recipe(["120M", "100M"]), CONFIG)
    assert {120_000_000, 100_000_000} <= set(found.increments)


def test_tokens_are_those_of_the_schedule_or_of_the_text() -> None:
    assert estimate(recipe(schedule={"num_tokens": 1000}), CONFIG).num_tokens == 1000
    assert estimate(recipe(), CONFIG).num_tokens is None
    assert estimate(recipe(), CONFIG, corpus_tokens=1000).num_tokens == 950
    assert estimate(recipe(recovery={"kind": "none"}), CONFIG).num_tokens == 0


def test_calibration_is_known_where_the_text_is_or_does_not_matter() -> None:
    def tokens(wanted: Recipe, corpus_tokens: int | None = None) -> int | None:
        return estimate(wanted, CONFIG, corpus_tokens=corpus_tokens).num_calibration_tokens

    assert tokens(recipe()) is None
    assert tokens(recipe(), corpus_tokens=10**9) == 32_768
    assert tokens(recipe(importance={"calibration": {"num_samples": 5}})) == 5 * 512
    assert tokens(recipe(method="adapt_pruner")) == 8_192
    assert tokens(recipe(recovery={"kind": "none"})) == 32_768


@pytest.mark.parametrize(
    ("recovery", "more"),
    [
        ({"distillation": {"teacher": "base"}}, True),
        ({"precision": "float32"}, True),
        ({"activation_checkpointing": True}, False),
        ({"kind": "lora"}, False),
        ({"kind": "none"}, False),
    ],
)
def test_memory_follows_how_the_model_is_trained(recovery: dict[str, Any], more: bool) -> None:
    usual = estimate(recipe(), CONFIG).peak_memory_bytes()
    found = estimate(recipe(recovery=recovery), CONFIG).peak_memory_bytes()
    assert (found > usual) == more
    assert found != usual


def test_memory_follows_the_micro_batch_of_the_device() -> None:
    found = estimate(recipe(), CONFIG)
    quarter = estimate(recipe(recovery={"micro_batch_sequences": 2}), CONFIG)
    assert found.peak_memory_bytes("cpu") == quarter.peak_memory_bytes("cuda")
    assert found.peak_memory_bytes("cpu") < found.peak_memory_bytes("cuda")


def test_memory_of_compiled_layers_is_less_for_each_token_of_more() -> None:
    eager = estimate(recipe(), CONFIG)
    compiled = estimate(recipe(recovery={"compile": True}), CONFIG)
    twice = estimate(recipe(recovery={"micro_batch_sequences": 4}), CONFIG)
    assert compiled.peak_memory_bytes("cuda") < eager.peak_memory_bytes("cuda")
    assert (
        eager.peak_memory_bytes("cpu")
        < compiled.peak_memory_bytes("cpu")
        < twice.peak_memory_bytes("cpu")
    )


def test_memory_of_an_unknown_device_is_the_most_that_the_recipe_allows() -> None:
    found = estimate(recipe(), CONFIG)
    assert found.peak_memory_bytes() == found.peak_memory_bytes("cuda")
    spread = estimate(recipe(processes=2), CONFIG)
    assert spread.peak_memory_bytes() == found.peak_memory_bytes("cpu")


def test_an_unknown_architecture_is_refused_with_those_supported() -> None:
    with pytest.raises(UnsupportedModel) as refused:
        estimate(recipe(), {**CONFIG, "model_type": "mamba"})
    assert "llama" in (refused.value.hint or "")


@pytest.mark.parametrize("value", [None, 0, -1, "576", 1.5, True, 10**12])
def test_a_size_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(InvalidModel):
        estimate(recipe(), {**CONFIG, "hidden_size": value})


def test_an_estimate_takes_less_than_50_milliseconds() -> None:
    wanted = recipe()
    started = time.process_time()
    estimate(wanted, CONFIG)
    assert time.process_time() - started < 0.05


def test_estimating_does_not_import_torch() -> None:
    code = "import pruning.estimate, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("axes", "left"),
    [
        (["layer"], {"num_hidden_layers": 1}),
        (["attention_block", "mlp_block"], {"num_hidden_layers": 1}),
        (["query_head"], {"num_attention_heads": 3}),
    ],
)
def test_the_floor_follows_the_axes(axes: list[str], left: dict[str, int]) -> None:
    config = {**CONFIG, "head_dim": 64}
    floor = estimate(recipe("0%", method="adapt_pruner", axes=axes), config).floor_num_parameters
    assert floor == estimate(recipe("0%"), {**config, **left}).num_parameters


def test_one_kind_of_block_leaves_all_of_the_other() -> None:
    blocks = recipe("0%", method="adapt_pruner", axes=["mlp_block"])
    floor = estimate(blocks, CONFIG).floor_num_parameters
    assert floor == 134_515_008 - 29 * 3 * 576 * 1536


def test_a_model_without_some_blocks_is_counted_and_has_a_floor() -> None:
    model = make_tiny_model("qwen3")
    base = unpruned_plan(model)
    no_attention = base.layers[0].model_copy(update={"kv_groups": ()})
    no_mlp = base.layers[1].model_copy(update={"intermediate": ()})
    plan = PruningPlan(layers=(no_attention, no_mlp, base.layers[2]))
    apply_plan(model, plan, previous=base)
    found = estimate(recipe("0%"), model.config.to_diff_dict())
    assert found.num_parameters == count_parameters(model)
    assert found.floor_num_parameters < found.num_parameters


MOE = {
    "model_type": "qwen3_moe",
    "vocab_size": 320,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 32,
}
UNREPAIRED = {"importance": {"kind": "taylor"}, "compensation": "none"}


@pytest.mark.parametrize(
    ("config", "fields", "message"),
    [
        (MOE, {}, "fisher importance inside its experts"),
        (MOE, {"importance": {"kind": "taylor"}}, "least_squares cannot repair"),
        (MOE, {"axes": ["mlp_block"], **UNREPAIRED}, "no MLP block"),
        (CONFIG, {"axes": ["expert"], **UNREPAIRED}, "no experts"),
    ],
)
def test_a_method_that_the_architecture_has_no_part_for_is_refused(
    config: dict[str, Any], fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        estimate(recipe(**fields), config)


def test_no_layer_keeps_fewer_experts_than_a_token_passes_through() -> None:
    wanted = recipe("0%", axes=["expert"], **UNREPAIRED)
    found = estimate(wanted, MOE)
    lost = found.num_parameters - found.floor_num_parameters
    assert lost == 2 * (8 - 3) * (3 * 64 * 32 + 64)
