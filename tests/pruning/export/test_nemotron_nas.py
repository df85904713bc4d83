"""The format of vLLM's own DeciLM model; `bench.vllm_parity` runs it, where there is a vLLM."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from safetensors import safe_open
from transformers import AutoConfig, PreTrainedModel

from pruning.errors import ExportRefused
from pruning.export.export import export_checkpoint, open_canonical
from pruning.export.nemotron_nas import export_nemotron_nas
from pruning.models.geometry import unpruned_plan
from pruning.plan import PruningPlan
from pruning.surgery import apply_plan
from tests.pruning.export.tiny import cut, save_tiny_checkpoint
from tests.pruning.tiny import make_tiny_model


def cut_channels(model: PreTrainedModel) -> None:
    """Unequal layers with all their heads; the second has no attention, the third no MLP."""
    base = unpruned_plan(model)
    first, second, third = base.layers
    layers = (
        first.model_copy(update={"intermediate": first.intermediate[:40]}),
        second.model_copy(update={"kv_groups": ()}),
        third.model_copy(update={"intermediate": ()}),
    )
    apply_plan(model, PruningPlan(layers=layers), previous=base)


def test_every_layer_says_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    model = make_tiny_model("llama", attention_bias=False, mlp_bias=False)
    cut_channels(model)
    export_nemotron_nas(model, tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["architectures"] == ["DeciLMForCausalLM"]
    assert "per_layer_config" not in written
    opened = AutoConfig.from_pretrained(tmp_path, trust_remote_code=True)
    first, second, third = opened.block_configs
    assert (first.attention.n_heads_in_group, first.ffn.intermediate_size) == (2, 40)
    assert (second.attention.no_op, third.ffn.no_op) == (True, True)
    assert not hasattr(first.ffn, "ffn_mult")


def test_blocks_that_are_gone_have_no_weights(tmp_path: Path) -> None:
    model = make_tiny_model("llama", attention_bias=False, mlp_bias=False)
    cut_channels(model)
    export_nemotron_nas(model, tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
    assert not any(".layers.1.self_attn" in n or ".layers.1.input_" in n for n in names)
    assert not any(".layers.2.mlp" in n or ".layers.2.post_" in n for n in names)
    assert "model.layers.2.self_attn.q_proj.weight" in names


@pytest.mark.parametrize(
    ("family", "reason"),
    [("llama", "same number of query heads"), ("qwen3", "it computes llama, mistral, qwen2")],
)
def test_what_decilm_would_not_compute_is_refused(tmp_path: Path, family: str, reason: str) -> None:
    model = make_tiny_model(family)
    cut(model)
    with pytest.raises(ExportRefused, match=reason):
        export_nemotron_nas(model, tmp_path)


def test_a_first_layer_without_attention_is_refused(tmp_path: Path) -> None:
    model = make_tiny_model("llama")
    base = unpruned_plan(model)
    gone = base.layers[0].model_copy(update={"kv_groups": ()})
    apply_plan(model, PruningPlan(layers=(gone, *base.layers[1:])), previous=base)
    with pytest.raises(ExportRefused, match="first layer must have attention"):
        export_nemotron_nas(model, tmp_path)


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed here")
def test_without_vllm_nothing_is_published(tmp_path: Path) -> None:
    canonical = open_canonical(save_tiny_checkpoint(tmp_path / "model", evenly=True))
    with pytest.raises(ExportRefused, match="No module named 'vllm'"):
        export_checkpoint(canonical, "nemotron_nas", tmp_path / "exports")
    assert not list((tmp_path / "exports").iterdir())
