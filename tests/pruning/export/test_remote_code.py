"""The variant that brings its own code."""

import json
from pathlib import Path

import pytest

from pruning.errors import ExportRefused
from pruning.export.export import export_checkpoint, open_canonical
from tests.pruning.export.tiny import save_tiny_checkpoint


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
