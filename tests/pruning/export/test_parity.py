"""The gate: an export that is not the same model is not published."""

import json
import os
from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file

from pruning.errors import ExportRefused
from pruning.export.export import Canonical, export_checkpoint, open_canonical
from pruning.export.parity import ParityRecord, check_parity, read_records
from tests.pruning.export.tiny import save_tiny_checkpoint


@pytest.fixture
def canonical(tmp_path: Path) -> Canonical:
    return open_canonical(save_tiny_checkpoint(tmp_path / "model"))


@pytest.fixture
def exported(canonical: Canonical, tmp_path: Path) -> Path:
    """A file that llama.cpp has just been proved to compute."""
    return export_checkpoint(canonical, "gguf:f32", tmp_path / "exports").directory / "model.gguf"


def prove(canonical: Canonical, artifact: Path) -> ParityRecord:
    return check_parity(
        artifact,
        "llama.cpp",
        model=canonical.model,
        tokenizer=canonical.tokenizer,
        precision="f32",
        tolerance=("max_difference", 1e-3),
    )


def test_the_record_is_stored_beside_the_artifact(exported: Path) -> None:
    (record,) = read_records(exported.parent)
    assert (record.engine, record.precision, record.tolerance) == ("llama.cpp", "f32", 1e-3)
    assert record.engine_version.startswith("llama.cpp (xllamacpp 20")
    assert record.max_difference < 1e-3
    assert record.same_top_token == 1.0


@pytest.mark.parametrize("name", ["blk.1.attn_q.weight", "blk.2.ffn_norm.weight"])
def test_a_damaged_file_is_refused(canonical: Canonical, exported: Path, name: str) -> None:
    tensors = gguf.GGUFReader(exported, "r+").tensors
    data = next(tensor.data for tensor in tensors if tensor.name == name)
    data[...] = data[::-1].copy()
    with pytest.raises(ExportRefused, match=r"llama.cpp differs .* max_difference"):
        prove(canonical, exported)


def test_what_differs_from_the_checkpoint_as_it_was_opened_is_not_published(
    canonical: Canonical, tmp_path: Path
) -> None:
    weights = canonical.checkpoint / "model.safetensors"
    damaged = load_file(weights)
    damaged["model.layers.1.mlp.down_proj.weight"] = torch.zeros_like(
        damaged["model.layers.1.mlp.down_proj.weight"]
    )
    save_file(damaged, weights, metadata={"format": "pt"})
    with pytest.raises(ExportRefused, match=r"transformers-remote-code differs .* max_difference"):
        export_checkpoint(canonical, "remote_code", tmp_path / "exports")
    assert not list((tmp_path / "exports").iterdir())


def test_another_tokenizer_is_refused(canonical: Canonical, tmp_path: Path) -> None:
    path = canonical.checkpoint / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    del tokenizer["model"]["merges"][10:]
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(ExportRefused, match=r"splits .* into other tokens"):
        export_checkpoint(canonical, "gguf:f32", tmp_path / "exports")


def test_an_engine_that_cannot_open_the_file_says_why(canonical: Canonical, exported: Path) -> None:
    os.truncate(exported, exported.stat().st_size // 2)
    with pytest.raises(ExportRefused, match=r"llama.cpp cannot run model.gguf"):
        prove(canonical, exported)
