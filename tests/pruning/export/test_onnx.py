"""ONNX graphs, run by onnxruntime."""

import pytest

from pruning.export.export import Exported, export_checkpoint, open_canonical
from pruning.export.speed import measure_beside
from tests.pruning.export.tiny import save_tiny_checkpoint


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    directory = tmp_path_factory.mktemp("onnx")
    canonical = open_canonical(save_tiny_checkpoint(directory / "model"))
    return export_checkpoint(canonical, "onnx", directory)


def test_onnxruntime_computes_the_same_model(exported: Exported) -> None:
    assert exported.records[0].engine == "onnxruntime"
    assert exported.records[0].max_difference < 1e-4
    names = {path.name for path in exported.directory.iterdir()}
    assert {"model.onnx", "model.onnx.data", "tokenizer.json", "parity.json"} <= names


def test_onnxruntime_is_timed_with_its_caches(exported: Exported) -> None:
    record = measure_beside("onnxruntime", exported.artifact, exported.artifact, rounds=1)
    assert min(record.export.decode_tokens_per_second, record.dense.first_token_seconds) > 0
