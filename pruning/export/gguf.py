"""GGUF for llama.cpp, layer by layer as wide as the model.

llama.cpp reads one width per layer for every architecture, but most of its graphs then use the
first layer's for all. Two do not, and between them hold our families: `deci`, which is Llama's
graph with optional biases, and `openelm`, which is Qwen3's with one fused projection and a tied
head. Equal layers go under the family's own name. D hidden, N query heads, K KV heads, H head dim,
E = N * H.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from pruning.errors import ExportRefused
from pruning.events import LayerWidths
from pruning.export.gguf_rope import (
    READS_FACTORS,
    add_rope,
    check_rope,
    interleave_rope,
    needs_factors,
    rope_factors,
)
from pruning.export.gguf_vocabulary import add_vocabulary
from pruning.models.adapter import adapter_for
from pruning.models.geometry import layer_widths

GgufType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]


@dataclass(frozen=True)
class _Names:
    """A family's names in llama.cpp: with equal layers, and with unequal ones.

    `interleaved_rope`: its own graph rotates neighbouring entries, transformers rotates halves.
    `square_queries`: its own graph wants N * H = D.
    """

    equal: str
    unequal: str
    interleaved_rope: bool = False
    square_queries: bool = False


FAMILIES = {
    "llama": _Names("llama", "deci", interleaved_rope=True),
    "mistral": _Names("llama", "deci", interleaved_rope=True),
    "qwen2": _Names("qwen2", "deci", square_queries=True),
    "qwen3": _Names("qwen3", "openelm"),
}

_FILE_TYPES = {
    "f32": gguf.LlamaFileType.ALL_F32,
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "bf16": gguf.LlamaFileType.MOSTLY_BF16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "q5_1": gguf.LlamaFileType.MOSTLY_Q5_1,
    "q5_0": gguf.LlamaFileType.MOSTLY_Q5_0,
    "q4_1": gguf.LlamaFileType.MOSTLY_Q4_1,
    "q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
}

_LAYER_TENSORS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@dataclass(frozen=True)
class Layout:
    """Which graph of llama.cpp runs the model, and how its attention wants its rows."""

    architecture: str
    widths: tuple[LayerWidths, ...]
    head_dim: int
    permuted: bool
    fused_qkv: bool


def export_gguf(
    model: PreTrainedModel, tokenizer_directory: Path, path: Path, *, weights: GgufType
) -> Layout:
    """Write one GGUF file: weights in `weights`, the tokenizer and its chat template.

    Raises:
        ExportRefused: llama.cpp has no graph that would compute this model.
    """
    layout = choose_layout(model)
    writer = gguf.GGUFWriter(path, layout.architecture)
    _add_hyperparameters(writer, model, layout, weights)
    add_vocabulary(writer, tokenizer_directory, vocab_size=model.config.vocab_size)
    for name, tensor in _tensors(model, layout):
        data, kind = _encode(name, tensor, weights)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return layout


def choose_layout(model: PreTrainedModel) -> Layout:
    """The graph that computes exactly this model.

    Raises:
        ExportRefused: there is none; the message says what stands in the way.
    """
    config = model.config
    widths = layer_widths(model)
    equal = len(set(widths)) == 1
    architecture = check_config(config, equal=equal)
    head_dim = adapter_for(config).head_dim
    names = FAMILIES[config.model_type]
    if names.square_queries and widths[0].num_attention_heads * head_dim != config.hidden_size:
        architecture = names.unequal
    _check_blocks(model, widths, architecture)
    return Layout(
        architecture=architecture,
        widths=widths,
        head_dim=head_dim,
        permuted=architecture == "deci" or (equal and names.interleaved_rope),
        fused_qkv=architecture == "openelm",
    )


def check_config(config: Any, *, equal: bool) -> str:
    """The architecture for layers that are `equal` or not, from the configuration alone.

    Raises:
        ExportRefused: llama.cpp has no graph for the family, or computes something differently.
    """
    names = FAMILIES.get(config.model_type)
    if names is None:
        raise ExportRefused(
            f"GGUF: no writer for model_type {config.model_type!r}",
            hint=f"families: {', '.join(FAMILIES)}; the padded export opens everywhere else",
        )
    architecture = names.equal if equal else names.unequal
    if names.unequal == "deci" and needs_factors(config) and architecture not in READS_FACTORS:
        architecture = "deci"
    check_rope(config, reads_factors=architecture in READS_FACTORS)
    if config.hidden_act != "silu":
        raise ExportRefused(
            f"GGUF: hidden_act is {config.hidden_act!r}, llama.cpp's graph computes 'silu'"
        )
    if config.model_type == "qwen3":
        _check_qwen3(config, equal=equal)
    return architecture


def _check_qwen3(config: Any, *, equal: bool) -> None:
    if config.attention_bias:
        raise ExportRefused("GGUF: attention_bias is set, llama.cpp's Qwen3 graphs have no biases")
    if not equal and not config.tie_word_embeddings:
        raise ExportRefused(
            "GGUF: llama.cpp's openelm graph always reuses the embeddings as the output head, "
            "and this model has its own",
            hint="export with allocation.layout uniform, or as padded",
        )


def _check_blocks(
    model: PreTrainedModel, widths: tuple[LayerWidths, ...], architecture: str
) -> None:
    """Refuse layers whose empty block llama.cpp would compute wrongly, or not at all."""
    for index, layer in enumerate(widths):
        if layer.intermediate_size == 0:
            raise _empty_block(
                f"layer {index} has no MLP, and llama.cpp goes on from such a layer before it has "
                "added its attention's output to the residual stream"
            )
        if layer.num_attention_heads > 0:
            continue
        if architecture != "deci":
            raise _empty_block(
                f"layer {index} has no attention, and llama.cpp's {architecture} graph wants one "
                "in every layer"
            )
        if any(name.endswith("o_proj.bias") for name in _state(model, index)):
            raise _empty_block(
                f"layer {index} has no attention left but its output's bias, which llama.cpp "
                "leaves out of such a layer"
            )


def _empty_block(reason: str) -> ExportRefused:
    return ExportRefused(
        f"GGUF: {reason}", hint="keep one group, remove the whole layer, or export as padded"
    )


def _state(model: PreTrainedModel, index: int) -> dict[str, Tensor]:
    return adapter_for(model.config).layers(model)[index].state_dict()


def _add_hyperparameters(
    writer: gguf.GGUFWriter, model: PreTrainedModel, layout: Layout, weights: GgufType
) -> None:
    config: Any = model.config
    writer.add_file_type(_FILE_TYPES[weights])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(_context_length(config))
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(len(layout.widths))
    writer.add_feed_forward_length(_scalar_or_list(layout, "intermediate_size"))
    writer.add_head_count(_scalar_or_list(layout, "num_attention_heads"))
    writer.add_head_count_kv(_scalar_or_list(layout, "num_key_value_heads"))
    # Written out, because llama.cpp would derive them from the first layer's heads.
    writer.add_key_length(layout.head_dim)
    writer.add_value_length(layout.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    add_rope(writer, model, layout.head_dim)


def _scalar_or_list(layout: Layout, name: str) -> int | list[int]:
    values = [getattr(layer, name) for layer in layout.widths]
    return values[0] if len(set(layout.widths)) == 1 else values


def _context_length(config: Any) -> int:
    """Up to a sliding window the model attends to everything, which is all these graphs do."""
    longest: int = config.max_position_embeddings
    window = getattr(config, "sliding_window", None)
    return min(longest, window) if window else longest


def _tensors(model: PreTrainedModel, layout: Layout) -> Iterator[tuple[str, Tensor]]:
    base = model.base_model
    yield "token_embd.weight", _weight(base.embed_tokens)
    yield "output_norm.weight", _weight(base.norm)
    if not model.config.tie_word_embeddings:
        yield "output.weight", _weight(model.get_output_embeddings())
    if needs_factors(model.config):
        yield "rope_freqs.weight", rope_factors(model, layout.head_dim)
    for index, widths in enumerate(layout.widths):
        tensors = dict(_layer_tensors(_state(model, index), layout, widths))
        if layout.fused_qkv:
            parts = [tensors.pop(f"attn_{part}.weight") for part in "qkv"]
            tensors["attn_qkv.weight"] = torch.cat(parts)
        for name, tensor in tensors.items():
            yield f"blk.{index}.{name}", tensor


def _layer_tensors(
    state: dict[str, Tensor], layout: Layout, widths: LayerWidths
) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in state.items():
        module, _, kind = name.rpartition(".")
        in_attention = module == "input_layernorm" or module.startswith("self_attn.")
        if in_attention and widths.num_attention_heads == 0:
            continue  # What is not there says that the layer has no attention.
        if layout.permuted and module == "self_attn.q_proj":
            tensor = interleave_rope(tensor, widths.num_attention_heads)
        if layout.permuted and module == "self_attn.k_proj":
            tensor = interleave_rope(tensor, widths.num_key_value_heads)
        yield f"{_LAYER_TENSORS[module]}.{kind}", tensor


def _weight(module: Any) -> Tensor:
    weight: Tensor = module.weight
    return weight


def _encode(
    name: str, tensor: Tensor, weights: GgufType
) -> tuple[NDArray[Any], gguf.GGMLQuantizationType]:
    """A tensor's bytes and their type. Vectors stay fp32, as llama.cpp adds and scales."""
    data = tensor.detach().float().cpu().contiguous().numpy()
    kind = gguf.GGMLQuantizationType.F32
    if data.ndim > 1:
        # The head (often the embeddings too) is what four bits hurt most, and read once a token.
        is_head = name in ("token_embd.weight", "output.weight")
        wanted = "q8_0" if is_head and weights.startswith(("q4", "q5")) else weights
        kind = gguf.GGMLQuantizationType[wanted.upper()]
    if data.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
        kind = gguf.GGMLQuantizationType.F16
    quantize: Callable[..., NDArray[Any]] = gguf.quants.quantize
    return np.ascontiguousarray(quantize(data, kind)), kind
