"""Zero-padded exports: stock models that compute the same."""

import json
from pathlib import Path

import pytest
import torch

from pruning.export.export import export_checkpoint, open_canonical
from pruning.export.padded import pad_to_equal_layers
from pruning.models.geometry import layer_widths, unpruned_plan
from pruning.plan import LayerPlan, PruningPlan
from pruning.surgery import apply_plan
from tests.pruning.export.tiny import cut, save_tiny_checkpoint
from tests.pruning.tiny import DENSE, make_tiny_model, random_ids


@pytest.mark.parametrize("family", DENSE)
@torch.no_grad()
def test_padding_changes_no_logit(family: str) -> None:
    model = make_tiny_model(family)
    cut(model)
    padded = pad_to_equal_layers(model)
    ids = random_ids()
    assert len(set(layer_widths(padded))) == 1
    torch.testing.assert_close(padded(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_heads_grow_until_the_architecture_accepts_their_number() -> None:
    model = make_tiny_model("llama", num_attention_heads=8, num_key_value_heads=8)
    plan = PruningPlan(
        layers=tuple(
            LayerPlan(intermediate=(1, 2, 3), kv_groups=kept)
            for kept in ((0, 1, 2, 5, 7), (1, 2, 4), (3,))
        )
    )
    apply_plan(model, plan, previous=unpruned_plan(model))
    padded = pad_to_equal_layers(model)
    assert layer_widths(padded)[0].num_attention_heads == 6
    ids = random_ids()
    torch.testing.assert_close(padded(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_query_heads_stay_with_their_kv_head() -> None:
    model = make_tiny_model("llama", num_attention_heads=6, num_key_value_heads=2)
    full = LayerPlan(intermediate=(1, 2, 3), kv_groups=(0, 1))
    fewer = full.model_copy(update={"query_heads": ((0, 2), (0, 1))})
    plan = PruningPlan(layers=(full, fewer, fewer))
    apply_plan(model, plan, previous=unpruned_plan(model))
    ids = random_ids()
    torch.testing.assert_close(
        pad_to_equal_layers(model)(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4
    )


def test_stock_transformers_opens_it_in_a_fresh_process(tmp_path: Path) -> None:
    canonical = open_canonical(save_tiny_checkpoint(tmp_path / "model"))
    exported = export_checkpoint(canonical, "padded", tmp_path)
    assert exported.records[0].engine == "transformers"
    assert exported.records[0].max_difference < 1e-4
    assert "per_layer_config" not in json.loads((exported.directory / "config.json").read_text())


@pytest.mark.parametrize("family", DENSE)
def test_blocks_that_are_gone_are_padded_too(family: str) -> None:
    model = make_tiny_model(family)
    base = unpruned_plan(model)
    no_attention = base.layers[0].model_copy(update={"kv_groups": ()})
    no_mlp = base.layers[1].model_copy(update={"intermediate": ()})
    plan = PruningPlan(layers=(no_attention, no_mlp, base.layers[2]))
    apply_plan(model, plan, previous=base)
    padded = pad_to_equal_layers(model)
    with torch.no_grad():
        expected = model(input_ids=random_ids()).logits
        found = padded(input_ids=random_ids()).logits
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
