"""Opening base models safely, and counting what they hold."""

import json
from pathlib import Path

import gguf
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from pruning.errors import InvalidModel, ModelNotFound, UnsupportedModel
from pruning.models.adapter import adapter_for
from pruning.models.geometry import (
    count_parameters,
    count_prunable_parameters,
    geometry_of,
    unpruned_plan,
)
from pruning.models.load import load_base_model
from pruning.recipe_parts.model import PathModel
from tests.pruning.tiny import FAMILIES, make_tiny_model, random_ids


def open_path(directory: Path, gguf_file: str | None = None) -> PreTrainedModel:
    source = PathModel(path=str(directory), gguf_file=gguf_file)
    return load_base_model(source, dtype=torch.float32).model


def test_a_directory_opens_with_its_tokenizer(
    tiny_model_dir: Path, tiny_llama: PreTrainedModel
) -> None:
    loaded = load_base_model(PathModel(path=str(tiny_model_dir)), dtype=torch.bfloat16)
    assert loaded.revision is None
    assert loaded.model.dtype == torch.bfloat16
    assert not loaded.model.training
    assert count_parameters(loaded.model) == count_parameters(tiny_llama)
    assert loaded.tokenizer.decode(loaded.tokenizer("a tree")["input_ids"]) == "a tree"


@pytest.mark.parametrize(
    ("path", "param"), [("/no/such/directory", "model.path"), ("/", "model.path")]
)
def test_a_missing_model_is_not_found(path: str, param: str) -> None:
    with pytest.raises(ModelNotFound) as caught:
        open_path(Path(path))
    assert caught.value.param == param


def test_pickled_weights_are_refused(tiny_model_dir: Path) -> None:
    weights = tiny_model_dir / "model.safetensors"
    weights.rename(tiny_model_dir / "pytorch_model.bin")
    with pytest.raises(InvalidModel, match="no safetensors"):
        open_path(tiny_model_dir)


def test_truncated_weights_are_an_invalid_model(tiny_model_dir: Path) -> None:
    weights = tiny_model_dir / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InvalidModel, match="cannot be opened"):
        open_path(tiny_model_dir)


def test_quantised_weights_are_refused(tiny_model_dir: Path) -> None:
    path = tiny_model_dir / "config.json"
    config = json.loads(path.read_text()) | {"quantization_config": {"quant_method": "awq"}}
    path.write_text(json.dumps(config))
    with pytest.raises(InvalidModel, match="quantised"):
        open_path(tiny_model_dir)


def test_code_in_the_repository_is_never_run(tiny_model_dir: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    (tiny_model_dir / "modeling_evil.py").write_text(f"open({str(mark)!r}, 'w')")
    path = tiny_model_dir / "config.json"
    config = json.loads(path.read_text())
    config["model_type"] = "evil"
    config["auto_map"] = {
        "AutoConfig": "modeling_evil.E",
        "AutoModelForCausalLM": "modeling_evil.E",
    }
    path.write_text(json.dumps(config))
    with pytest.raises(InvalidModel):
        open_path(tiny_model_dir)
    assert not mark.exists()


def test_an_unsupported_architecture_names_those_supported() -> None:
    with pytest.raises(UnsupportedModel) as caught:
        adapter_for(GPT2Config())
    assert "gpt2" in caught.value.message
    assert all(family in (caught.value.hint or "") for family in FAMILIES)


def test_tied_embeddings_count_once() -> None:
    tied, untied = make_tiny_model(tied=True), make_tiny_model(tied=False)
    embedding = untied.get_input_embeddings().weight.numel()
    assert count_parameters(untied) - count_parameters(tied) == embedding


@pytest.mark.parametrize("family", FAMILIES)
def test_prunable_parameters_are_those_of_the_decoder_layers(family: str) -> None:
    model = make_tiny_model(family)
    named = {n: p.numel() for n, p in model.named_parameters() if ".layers." in n}
    assert count_prunable_parameters(model) == sum(named.values())
    geometry = geometry_of(model)
    assert geometry.num_parameters(unpruned_plan(model)) == count_parameters(model)


def permuted(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Query or key rows in the order in which llama.cpp keeps rotary pairs."""
    return weight.view(num_heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def write_gguf(path: Path, model: PreTrainedModel, tokens: list[str], merges: list[str]) -> None:
    """The tiny Llama (no biases) as an unquantised GGUF file."""
    config, writer = model.config, gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, parameter in model.named_parameters():
        tensor = parameter.detach()
        if ".q_proj." in name:
            tensor = permuted(tensor, config.num_attention_heads)
        if ".k_proj." in name:
            tensor = permuted(tensor, config.num_key_value_heads)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_opens_and_saves_as_an_ordinary_model(
    tmp_path: Path, tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = json.loads(tiny_tokenizer.backend_tokenizer.to_str())["model"]
    write_gguf(
        tmp_path / "tiny.gguf",
        tiny_llama,
        list(model["vocab"]),
        [" ".join(merge) for merge in model["merges"]],
    )
    opened = open_path(tmp_path, "tiny.gguf")
    opened.save_pretrained(tmp_path / "saved")
    assert "quantization_config" not in json.loads((tmp_path / "saved/config.json").read_text())
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    ids = random_ids()
    with torch.no_grad():
        expected = tiny_llama(input_ids=ids).logits
        torch.testing.assert_close(opened(input_ids=ids).logits, expected)
        torch.testing.assert_close(again(input_ids=ids).logits, expected)
