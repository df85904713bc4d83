"""Speed of an export beside the dense model, each in processes of its engine."""

from pathlib import Path

import pytest

from pruning.errors import ExportRefused
from pruning.export.export import export_checkpoint, open_canonical
from pruning.export.speed import measure_beside
from tests.pruning.export.tiny import save_tiny_checkpoint


def test_both_models_are_timed_in_the_same_engine(tmp_path: Path) -> None:
    canonical = open_canonical(save_tiny_checkpoint(tmp_path / "model"))
    exported = export_checkpoint(canonical, "remote_code", tmp_path)
    record = measure_beside(exported.engine, exported.artifact, exported.artifact, rounds=1)
    assert record.num_samples == 3
    for speed in (record.export, record.dense):
        assert speed.decode_tokens_per_second > 0
        assert speed.first_token_seconds > 0


def test_what_the_engine_cannot_run_is_said(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"no model")
    with pytest.raises(ExportRefused, match=r"llama.cpp cannot be timed with model.gguf"):
        measure_beside("llama.cpp", tmp_path / "model.gguf", tmp_path / "model.gguf", rounds=1)
