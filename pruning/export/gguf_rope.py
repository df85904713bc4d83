"""Rotary position embeddings as llama.cpp wants them: order of the rows, and scalings.

E rows of a projection, D hidden, H head dim.
"""

import math
from typing import Any

import gguf
import torch
from torch import Tensor
from transformers import PreTrainedModel

from pruning.errors import ExportRefused

READS_FACTORS = ("deci", "llama")
"""Architectures whose graphs divide each frequency by a tensor of the file, as Llama 3.1 needs."""

_REASONS = {
    "dynamic": "its frequencies follow the length of the text, llama.cpp's are fixed",
    "longrope": "transformers takes the long factors once the text is long, llama.cpp once its "
    "context is",
}


def check_rope(config: Any, *, reads_factors: bool) -> None:
    """Refuse scalings that llama.cpp computes differently, or not at all.

    Raises:
        ExportRefused: the message says what and why.
    """
    rope = config.rope_parameters
    kind = rope.get("rope_type", "default")
    allowed = ("default", "linear", "yarn", "llama3") if reads_factors else _WITHOUT_FACTORS
    if kind not in allowed:
        why = _REASONS.get(kind, f"this graph knows {', '.join(allowed)}")
        raise ExportRefused(
            f"GGUF: the RoPE scaling is {kind!r}: {why}",
            hint="the padded and the onnx export keep it as it is",
        )
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise ExportRefused("GGUF: only part of each head is rotated, llama.cpp rotates all of it")
    if kind == "yarn":
        _check_yarn(rope)


def _check_yarn(rope: dict[str, Any]) -> None:
    if not rope.get("truncate", True):
        raise ExportRefused(
            "GGUF: the YaRN scaling does not round its range of dimensions, llama.cpp does"
        )
    betas = rope.get("beta_fast") or 32, rope.get("beta_slow") or 1
    if betas != (32, 1):
        raise ExportRefused(
            f"GGUF: the YaRN scaling has beta_fast and beta_slow {betas}, and llama.cpp takes "
            "32 and 1 whatever the file says"
        )


_WITHOUT_FACTORS = ("default", "linear", "yarn")


def needs_factors(config: Any) -> bool:
    """Whether only a graph that reads frequency factors computes this model."""
    kind: str = config.rope_parameters.get("rope_type", "default")
    return kind == "llama3"


def add_rope(writer: gguf.GGUFWriter, model: PreTrainedModel, head_dim: int) -> None:
    """Write base frequency and scaling."""
    rope = model.config.rope_parameters
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(rope["rope_theta"])
    kind = rope.get("rope_type", "default")
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if kind == "yarn":
        _add_yarn(writer, model)


def _add_yarn(writer: gguf.GGUFWriter, model: PreTrainedModel) -> None:
    rope: dict[str, Any] = model.config.rope_parameters
    trained = rope["original_max_position_embeddings"]
    factor = rope["factor"] or model.config.max_position_embeddings / trained
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(factor)
    writer.add_rope_scaling_orig_ctx_len(trained)
    # llama.cpp scales by what the paper suggests, and by this on top.
    suggested = 0.1 * math.log(factor) + 1.0
    writer.add_rope_scaling_attn_factors(model.base_model.rotary_emb.attention_scaling / suggested)


def rope_factors(model: PreTrainedModel, head_dim: int) -> Tensor:
    """What the scaling divides each frequency by [H / 2]."""
    rope = model.config.rope_parameters
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    plain: Tensor = 1.0 / rope["rope_theta"] ** exponents
    scaled = model.base_model.rotary_emb.inv_freq.float().cpu()
    factors: Tensor = plain / scaled
    return factors


def interleave_rope(rows_ED: Tensor, num_heads: int) -> Tensor:
    """Reorder each head's entries so that the two of a rotated pair lie side by side.

    transformers pairs entry i with i + H/2; llama.cpp's NORM rope pairs 2i with 2i + 1.
    """
    halves = rows_ED.reshape(num_heads, 2, -1, *rows_ED.shape[1:])
    return halves.transpose(1, 2).reshape(rows_ED.shape)
