"""Target shapes: an explicit uniform architecture, reached exactly."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoConfig

from pruning.allocation.allocate import allocate
from pruning.allocation.shapes import shape_num_parameters
from pruning.allocation.widths import depth_of, hidden_size_of, widths_of
from pruning.errors import TargetUnreachable
from pruning.estimate import estimate
from pruning.events import IncrementFinished, LayerWidths
from pruning.pipeline import run
from pruning.plan import PruningPlan
from pruning.recipe_parts.method import Allocation
from pruning.recipe_parts.target import Shape
from tests.pruning.recipes import make_recipe, write_corpus
from tests.pruning.test_allocation import make_geometry, make_scores, whole

shapes = st.builds(
    Shape,
    intermediate_size=st.integers(1, 48),
    num_key_value_heads=st.integers(1, 4),
    num_attention_heads=st.none(),
    num_hidden_layers=st.integers(1, 5),
)


@settings(deadline=None, max_examples=60)
@given(shapes, st.integers(1, 3), st.integers(1, 4), st.integers(0, 99))
def test_increments_end_at_exactly_the_shape(
    shape: Shape, heads_per_group: int, num_increments: int, seed: int
) -> None:
    assert shape.num_key_value_heads is not None
    heads = heads_per_group * shape.num_key_value_heads
    shape = shape.model_copy(update={"num_attention_heads": heads})
    plan = base = whole(layers=5, intermediate=48, kv_groups=4)
    geometry = make_geometry(layers=5)
    start, end = geometry.num_parameters(plan), shape_num_parameters(shape, plan, geometry)
    for increment in range(1, num_increments + 1):
        target = start - (start - end) * increment // num_increments
        before = plan
        plan, _ = allocate(
            make_scores(PruningPlan(layers=tuple(plan.layers[i] for i in plan.living)), seed=seed),
            plan,
            geometry,
            target_num_parameters=target,
            allocation=Allocation(),
            shape=shape,
        )
        plan.relative_to(before)
        assert geometry.num_parameters(plan) <= target
    expected = LayerWidths(
        intermediate_size=shape.intermediate_size or 0,
        num_attention_heads=heads,
        num_key_value_heads=shape.num_key_value_heads,
    )
    assert geometry.widths(plan) == (expected,) * (shape.num_hidden_layers or 0)
    assert geometry.num_parameters(plan) == end
    assert plan.relative_to(base) == plan


BASE = LayerWidths(intermediate_size=64, num_attention_heads=6, num_key_value_heads=3)


@pytest.mark.parametrize(
    ("shape", "field"),
    [
        ({"intermediate_size": 65}, "intermediate_size"),
        ({"num_key_value_heads": 4}, "num_attention_heads|num_key_value_heads"),
        ({"num_attention_heads": 5}, "num_attention_heads"),
        ({"num_key_value_heads": 1, "num_attention_heads": 3}, "num_attention_heads"),
    ],
)
def test_a_shape_beyond_the_model_names_the_field(shape: dict[str, int], field: str) -> None:
    with pytest.raises(TargetUnreachable, match=field):
        widths_of(Shape(**shape), BASE)


@pytest.mark.parametrize(("hidden_size", "divisor"), [(65, 1), (60, 8)])
def test_a_residual_stream_beyond_the_model_or_its_heads_is_refused(
    hidden_size: int, divisor: int
) -> None:
    with pytest.raises(TargetUnreachable, match="hidden_size"):
        hidden_size_of(Shape(hidden_size=hidden_size), 64, divisor)


def test_a_shape_deeper_than_the_model_is_refused() -> None:
    with pytest.raises(TargetUnreachable, match="num_hidden_layers"):
        depth_of(Shape(num_hidden_layers=4), 3)


def test_heads_follow_their_kv_groups_unless_the_shape_says_otherwise() -> None:
    assert widths_of(Shape(num_key_value_heads=2), BASE).num_attention_heads == 4


def test_a_run_ends_with_a_stock_model_of_the_shape(tmp_path: Path, tiny_model_dir: Path) -> None:
    shape: dict[str, Any] = {
        "intermediate_size": 40,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "num_hidden_layers": 2,
        "hidden_size": 36,
    }
    corpus = write_corpus(tmp_path / "text.jsonl")
    recipe = make_recipe(
        tiny_model_dir, corpus, target={"shape": shape}, importance={"kind": "taylor"}
    )
    directories: list[str] = []
    run(
        recipe,
        tmp_path / "out",
        lambda event: (
            directories.append(event.directory) if isinstance(event, IncrementFinished) else None
        ),
        device="cpu",
    )
    config = AutoConfig.from_pretrained(tmp_path / "out" / directories[-1])
    assert not config.is_heterogeneous
    assert {name: getattr(config, name) for name in shape} == shape
    published = AutoConfig.from_pretrained(tiny_model_dir).to_dict()
    assert estimate(recipe, published).final_num_parameters == sum(
        tensor.numel()
        for tensor in load_file(tmp_path / "out" / directories[-1] / "model.safetensors").values()
    )
