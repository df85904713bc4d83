"""GGUF files, written by us and run by the real llama.cpp."""

from pathlib import Path

import gguf
import pytest
import torch

from pruning.errors import ExportRefused
from pruning.export.export import export_checkpoint, open_canonical
from pruning.export.gguf import choose_layout, export_gguf, interleave_rope
from pruning.recipe import ExportFormat
from tests.pruning.export.tiny import CHAT_TEMPLATE, cut, save_tiny_checkpoint
from tests.pruning.tiny import make_tiny_model


@pytest.mark.parametrize(
    ("family", "tied", "evenly", "architecture"),
    [
        ("llama", True, False, "deci"),
        ("mistral", False, False, "deci"),
        ("qwen2", False, False, "deci"),
        ("qwen3", True, False, "openelm"),
        ("llama", False, True, "llama"),
        ("qwen2", True, True, "deci"),
        ("qwen3", False, True, "qwen3"),
    ],
)
def test_llama_cpp_computes_the_same_model(
    tmp_path: Path, family: str, tied: bool, evenly: bool, architecture: str
) -> None:
    checkpoint = save_tiny_checkpoint(tmp_path / "model", family, tied=tied, evenly=evenly)
    canonical = open_canonical(checkpoint)
    exported = export_checkpoint(canonical, "gguf:f32", tmp_path)
    assert choose_layout(canonical.model).architecture == architecture
    (record,) = exported.records
    assert record.max_difference < 1e-3
    assert record.tokenizer_checked
    assert record.num_tokens_compared > 1000


def test_a_qwen2_with_all_its_heads_keeps_its_own_architecture() -> None:
    model = make_tiny_model("qwen2")
    assert choose_layout(model).architecture == "qwen2"


@pytest.mark.parametrize("export", ["gguf:q8_0", "gguf:q4_0"])
def test_a_quantised_file_is_proved_in_fp32_first(tmp_path: Path, export: ExportFormat) -> None:
    canonical = open_canonical(save_tiny_checkpoint(tmp_path / "model"))
    exported = export_checkpoint(canonical, export, tmp_path)
    assert [record.precision for record in exported.records] == ["f32", export[5:]]
    assert exported.records[0].max_difference < 1e-3
    assert exported.records[1].divergence > 0
    assert {path.name for path in exported.directory.iterdir()} == {"model.gguf", "parity.json"}


def test_the_file_carries_the_chat_template_and_special_tokens(tmp_path: Path) -> None:
    checkpoint = save_tiny_checkpoint(tmp_path / "model")
    export_gguf(open_canonical(checkpoint).model, checkpoint, tmp_path / "m.gguf", weights="f16")
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    assert fields["tokenizer.chat_template"].contents() == CHAT_TEMPLATE
    assert fields["tokenizer.ggml.eos_token_id"].contents() == 0
    assert fields["deci.attention.head_count_kv"].contents() == [3, 2, 1]


def test_an_empty_block_is_refused_because_llama_cpp_would_drop_its_layer() -> None:
    model = make_tiny_model("llama")
    cut(model)
    mlp = model.get_submodule("model.layers.1.mlp")
    for name in ("gate_proj", "up_proj"):
        linear = mlp.get_submodule(name)
        linear.weight = torch.nn.Parameter(linear.weight[:0])
    with pytest.raises(ExportRefused, match="layer 1 has an empty block"):
        choose_layout(model)


def test_unequal_layers_with_an_output_head_are_refused_for_qwen3() -> None:
    model = make_tiny_model("qwen3", tied=False)
    cut(model)
    with pytest.raises(ExportRefused, match="its own"):
        choose_layout(model)


@pytest.mark.parametrize(
    ("field", "value"), [("hidden_act", "gelu"), ("rope_parameters", {"rope_type": "yarn"})]
)
def test_what_the_graph_would_compute_differently_is_refused(field: str, value: object) -> None:
    model = make_tiny_model("qwen2")
    setattr(model.config, field, value)
    with pytest.raises(ExportRefused, match=r"hidden_act|rope_type"):
        choose_layout(model)


def test_rope_rows_are_interleaved_head_by_head() -> None:
    rows = torch.arange(8.0)[:, None].expand(8, 2)
    assert interleave_rope(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
