"""The variant that brings its own code."""

import json
from pathlib import Path

import pytest

from pruning.errors import ExportRefused
from pruning.export.export import export_checkpoint, open_canonical
from pruning.export.remote_code import export_remote_code
from pruning.models.geometry import unpruned_plan
from pruning.plan import PruningPlan
from pruning.surgery import apply_plan
from tests.pruning.export.tiny import save_tiny_checkpoint
from tests.pruning.tiny import make_tiny_model


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_it_opens_without_espalier(
    tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    canonical = open_canonical(save_tiny_checkpoint(tmp_path / "model", family))
    exported = export_checkpoint(canonical, "remote_code", tmp_path)
    assert exported.records[0].max_difference < 1e-5
    auto_map = json.loads((exported.directory / "config.json").read_text())["auto_map"]
    assert set(auto_map) == {"AutoModel", "AutoModelForCausalLM"}


def test_equal_layers_need_no_code(tmp_path: Path) -> None:
    canonical = open_canonical(save_tiny_checkpoint(tmp_path / "model", evenly=True))
    with pytest.raises(ExportRefused, match="needs no code"):
        export_checkpoint(canonical, "remote_code", tmp_path / "exports")
    assert not list((tmp_path / "exports").iterdir())


def test_a_layer_without_attention_is_refused(tmp_path: Path) -> None:
    model = make_tiny_model("llama")
    base = unpruned_plan(model)
    no_attention = base.layers[0].model_copy(update={"kv_groups": ()})
    apply_plan(model, PruningPlan(layers=(no_attention, *base.layers[1:])), previous=base)
    with pytest.raises(ExportRefused, match="no attention block"):
        export_remote_code(model, tmp_path, tmp_path)
