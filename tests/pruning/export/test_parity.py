"""The gate: an export that is not the same model is not published."""

import json
from pathlib import Path

import pytest
import torch

from pruning.errors import ExportRefused
from pruning.export import gguf_vocabulary
from pruning.export.export import Canonical, export_checkpoint, open_canonical
from pruning.export.parity import read_records
from tests.pruning.export.tiny import save_tiny_checkpoint


@pytest.fixture
def canonical(tmp_path: Path) -> Canonical:
    return open_canonical(save_tiny_checkpoint(tmp_path / "model"))


def test_the_record_is_stored_beside_the_artifact(canonical: Canonical, tmp_path: Path) -> None:
    exported = export_checkpoint(canonical, "gguf:f32", tmp_path / "exports")
    (record,) = read_records(exported.directory)
    assert record == exported.records[0]
    assert (record.engine, record.precision, record.tolerance) == ("llama.cpp", "f32", 1e-3)
    assert record.engine_version.startswith("llama.cpp (xllamacpp 20")
    assert record.same_top_token == 1.0


def test_a_damaged_export_is_refused_and_nothing_is_published(
    canonical: Canonical, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_permutation(rows: torch.Tensor, num_heads: int) -> torch.Tensor:
        return rows

    monkeypatch.setattr("pruning.export.gguf.interleave_rope", without_permutation)
    with pytest.raises(ExportRefused, match=r"llama.cpp differs .* max_difference"):
        export_checkpoint(canonical, "gguf:q8_0", tmp_path / "exports")
    assert not list((tmp_path / "exports").iterdir())


def test_another_tokenizer_is_refused(canonical: Canonical, tmp_path: Path) -> None:
    path = canonical.checkpoint / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    del tokenizer["model"]["merges"][10:]
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(ExportRefused, match=r"splits .* into other tokens"):
        export_checkpoint(canonical, "gguf:f32", tmp_path / "exports")


def test_an_engine_that_cannot_open_the_file_says_why(
    canonical: Canonical, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(gguf_vocabulary._PRE_TOKENIZERS, ("bytes",), "no-such-tokenizer")
    with pytest.raises(ExportRefused, match=r"llama.cpp cannot run plain.gguf"):
        export_checkpoint(canonical, "gguf:f32", tmp_path / "exports")
