"""GGUF files, written by us and run by the real llama.cpp."""

import json
from pathlib import Path

import gguf
import pytest
import torch
from transformers import PreTrainedModel

from pruning.errors import ExportRefused
from pruning.export.export import export_checkpoint, open_canonical
from pruning.export.gguf import choose_layout, export_gguf
from pruning.export.gguf_rope import interleave_rope
from pruning.models.geometry import unpruned_plan
from pruning.plan import PruningPlan
from pruning.recipe_parts.output import ExportFormat
from pruning.surgery import apply_plan
from tests.pruning.export.tiny import (
    CHAT_TEMPLATE,
    SENTENCEPIECE_STYLES,
    cut,
    save_tiny_checkpoint,
    sentencepiece_tokenizer,
)
from tests.pruning.tiny import make_tiny_model, make_tiny_tokenizer

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def save(model: PreTrainedModel, directory: Path) -> Path:
    """A checkpoint of a model that a test has made itself."""
    model.save_pretrained(directory / "model")
    make_tiny_tokenizer().save_pretrained(directory / "model")
    return directory / "model"


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


def without_block(family: str, block: str, **overrides: object) -> PreTrainedModel:
    """A tiny model whose second layer has lost one block."""
    model = make_tiny_model(family, **overrides)
    base = unpruned_plan(model)
    layer = base.layers[1].model_copy(update={block: ()})
    apply_plan(model, PruningPlan(layers=(base.layers[0], layer, base.layers[2])), previous=base)
    return model


def test_a_layer_without_mlp_is_refused_because_its_attention_would_be_lost() -> None:
    model = without_block("llama", "intermediate")
    with pytest.raises(ExportRefused, match=r"layer 1 has no MLP, .* its attention's output"):
        choose_layout(model)


def test_a_layer_without_attention_is_refused_where_the_graph_wants_one() -> None:
    model = without_block("qwen3", "kv_groups")
    with pytest.raises(ExportRefused, match=r"layer 1 has no attention, .* openelm graph"):
        choose_layout(model)


def test_a_bias_left_of_an_attention_is_refused_because_it_would_be_left_out() -> None:
    model = without_block("llama", "kv_groups", attention_bias=True)
    with pytest.raises(ExportRefused, match="no attention left but its output's bias"):
        choose_layout(model)


def test_llama_cpp_computes_a_layer_without_attention(tmp_path: Path) -> None:
    model = without_block("llama", "kv_groups", attention_bias=False, mlp_bias=False)
    exported = export_checkpoint(open_canonical(save(model, tmp_path)), "gguf:f32", tmp_path)
    assert exported.records[0].max_difference < 1e-3


def test_unequal_layers_with_an_output_head_are_refused_for_qwen3() -> None:
    model = make_tiny_model("qwen3", tied=False)
    cut(model)
    with pytest.raises(ExportRefused, match="its own"):
        choose_layout(model)


@pytest.mark.parametrize(
    ("family", "scaling"),
    [
        ("llama", {"rope_type": "linear", "factor": 4.0}),
        ("llama", YARN),
        ("llama", {**YARN, "attention_factor": 1.3}),
        ("llama", LLAMA3),
        ("qwen2", LLAMA3),
        ("qwen3", YARN),
    ],
    ids=lambda value: value if isinstance(value, str) else value["rope_type"],
)
def test_llama_cpp_scales_positions_the_same(
    tmp_path: Path, family: str, scaling: dict[str, object]
) -> None:
    rope = {"rope_theta": 10_000.0, **scaling}
    model = make_tiny_model(family, rope_parameters=rope)
    cut(model)
    exported = export_checkpoint(open_canonical(save(model, tmp_path)), "gguf:f32", tmp_path)
    assert exported.records[0].max_difference < 1e-3


@pytest.mark.parametrize(
    ("family", "changes", "reason"),
    [
        ("qwen2", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ("qwen2", {"rope_parameters": {"rope_type": "longrope"}}, "once its context is"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic"}}, "follow the length of the text"),
        ("llama", {"rope_parameters": {**YARN, "truncate": False}}, "does not round"),
        ("llama", {"rope_parameters": {**YARN, "beta_slow": 2.0}}, "takes 32 and 1"),
        ("qwen3", {"rope_parameters": LLAMA3}, "this graph knows default, linear, yarn"),
        ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "only part of each head"),
    ],
)
def test_what_the_graph_would_compute_differently_is_refused(
    family: str, changes: dict[str, object], reason: str
) -> None:
    model = make_tiny_model(family)
    for field, value in changes.items():
        setattr(model.config, field, value)
    with pytest.raises(ExportRefused, match=reason):
        choose_layout(model)


@pytest.mark.parametrize("style", SENTENCEPIECE_STYLES)
def test_llama_cpp_splits_text_as_a_sentencepiece_tokenizer_does(
    tmp_path: Path, style: str
) -> None:
    tokenizer = sentencepiece_tokenizer(style)
    model = make_tiny_model("llama", vocab_size=len(tokenizer))
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    exported = export_checkpoint(open_canonical(tmp_path / "model"), "gguf:f32", tmp_path)
    fields = gguf.GGUFReader(exported.directory / "model.gguf").fields
    assert fields["tokenizer.ggml.model"].contents() == "llama"
    assert exported.records[0].tokenizer_checked


def test_a_unigram_vocabulary_is_refused(tmp_path: Path) -> None:
    checkpoint = save_tiny_checkpoint(tmp_path / "model")
    path = checkpoint / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"] = {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 0}
    path.write_text(json.dumps(tokenizer))
    model = make_tiny_model()
    with pytest.raises(ExportRefused, match="tokenizers of type 'Unigram' are not written"):
        export_gguf(model, checkpoint, tmp_path / "m.gguf", weights="f32")


def test_rope_rows_are_interleaved_head_by_head() -> None:
    rows = torch.arange(8.0)[:, None].expand(8, 2)
    assert interleave_rope(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
