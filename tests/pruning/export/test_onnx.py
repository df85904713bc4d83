"""ONNX graphs, run by onnxruntime."""

from pathlib import Path

from pruning.export.export import export_checkpoint, open_canonical
from tests.pruning.export.tiny import save_tiny_checkpoint


def test_onnxruntime_computes_the_same_model(tmp_path: Path) -> None:
    canonical = open_canonical(save_tiny_checkpoint(tmp_path / "model"))
    exported = export_checkpoint(canonical, "onnx", tmp_path)
    assert exported.records[0].engine == "onnxruntime"
    assert exported.records[0].max_difference < 1e-4
    names = {path.name for path in exported.directory.iterdir()}
    assert {"model.onnx", "model.onnx.data", "tokenizer.json", "parity.json"} <= names
