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


_FAMILIES = {
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
    check_config(config, equal=equal)
    _check_widths(widths)
    head_dim = adapter_for(config).head_dim
    names = _FAMILIES[config.model_type]
    if names.square_queries and widths[0].num_attention_heads * head_dim != config.hidden_size:
        equal = False
    architecture = names.equal if equal else names.unequal
    return Layout(
        architecture=architecture,
        widths=widths,
        head_dim=head_dim,
        permuted=architecture == "deci" or (equal and names.interleaved_rope),
        fused_qkv=architecture == "openelm",
    )


def check_config(config: Any, *, equal: bool) -> None:
    """Refuse, before any weight is looked at, what llama.cpp computes differently or not at all.

    Raises:
        ExportRefused: it has no graph for the family, with layers `equal` or not.
    """
    names = _FAMILIES.get(config.model_type)
    if names is None:
        raise ExportRefused(
            f"GGUF: no writer for model_type {config.model_type!r}",
            hint=f"families: {', '.join(_FAMILIES)}; the padded export opens everywhere else",
        )
    if not equal and names.unequal == "openelm" and not config.tie_word_embeddings:
        raise ExportRefused(
            "GGUF: llama.cpp's openelm graph always reuses the embeddings as the output head, "
            "and this model has its own",
            hint="export with allocation.layout uniform, or as padded",
        )
    _check_graph(config)


def _check_widths(widths: tuple[LayerWidths, ...]) -> None:
    for index, layer in enumerate(widths):
        if min(layer.model_dump().values()) == 0:
            # The graph would skip the layer before its attention reached the residual stream.
            raise ExportRefused(
                f"GGUF: layer {index} has an empty block; llama.cpp would drop the layer's other "
                "block without a word",
                hint="keep at least one group, or remove the whole layer",
            )


def _check_graph(config: Any) -> None:
    """Refuse what these graphs compute differently, or not at all."""
    rope = config.rope_parameters
    supported = {
        "hidden_act": (config.hidden_act, ("silu",)),
        "rope_type": (rope.get("rope_type", "default"), ("default", "linear", "llama3")),
        "partial_rotary_factor": (rope.get("partial_rotary_factor", 1.0), (1.0,)),
    }
    if config.model_type == "qwen3":
        supported["attention_bias"] = (config.attention_bias, (False,))
        supported["rope_type"] = (rope.get("rope_type", "default"), ("default", "linear"))
    for name, (value, allowed) in supported.items():
        if value not in allowed:
            raise ExportRefused(f"GGUF: {name} is {value!r}, llama.cpp's graph knows {allowed}")


def _add_hyperparameters(
    writer: gguf.GGUFWriter, model: PreTrainedModel, layout: Layout, weights: GgufType
) -> None:
    config: Any = model.config
    rope = config.rope_parameters
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
    writer.add_rope_dimension_count(layout.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])


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
    if model.config.rope_parameters.get("rope_type") == "llama3":
        yield "rope_freqs.weight", _rope_factors(model, layout.head_dim)
    for index, layer in enumerate(adapter_for(model.config).layers(model)):
        tensors = dict(_layer_tensors(layer.state_dict(), layout, layout.widths[index]))
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
        if layout.permuted and module == "self_attn.q_proj":
            tensor = interleave_rope(tensor, widths.num_attention_heads)
        if layout.permuted and module == "self_attn.k_proj":
            tensor = interleave_rope(tensor, widths.num_key_value_heads)
        yield f"{_LAYER_TENSORS[module]}.{kind}", tensor


def interleave_rope(rows_ED: Tensor, num_heads: int) -> Tensor:
    """Reorder each head's entries so that the two of a rotated pair lie side by side.

    transformers pairs entry i with i + H/2; llama.cpp's NORM rope pairs 2i with 2i + 1.
    """
    halves = rows_ED.reshape(num_heads, 2, -1, *rows_ED.shape[1:])
    return halves.transpose(1, 2).reshape(rows_ED.shape)


def _rope_factors(model: PreTrainedModel, head_dim: int) -> Tensor:
    """What Llama 3.1's scaling divides each frequency by [H / 2]."""
    rope = model.config.rope_parameters
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    plain: Tensor = 1.0 / rope["rope_theta"] ** exponents
    scaled = model.base_model.rotary_emb.inv_freq.float().cpu()
    factors: Tensor = plain / scaled
    return factors


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
