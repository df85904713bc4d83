"""What a decoder layer is: declared once per family, looked up by `model_type`, never traced."""

from dataclasses import dataclass
from typing import Literal

Span = Literal["channel", "key_value_head", "query_head"]
"""What consecutive entries of a tensor are: one intermediate channel each, or the `head_dim`
entries of a KV head or of a query head. Query heads that share a KV head follow one another."""

Side = Literal["outputs", "inputs", "norm"]


@dataclass(frozen=True)
class Member:
    """A module of a decoder layer that shrinks with an axis.

    A linear layer loses `outputs` (bias included) or `inputs`; a `norm` entries it averages over.
    Of a fused projection each `part` is a member of its own, in the order of its outputs.
    """

    module: str
    side: Side
    span: Span
    part: int = 0


@dataclass(frozen=True, kw_only=True)
class Family:
    """The coupled tensors of one architecture.

    `mlp_input` is the module whose input is the residual stream between the two blocks of a layer.
    """

    model_type: str
    intermediate: tuple[Member, ...] = (
        Member("mlp.gate_proj", "outputs", "channel"),
        Member("mlp.up_proj", "outputs", "channel"),
        Member("mlp.down_proj", "inputs", "channel"),
    )
    kv_group: tuple[Member, ...] = (
        Member("self_attn.q_proj", "outputs", "query_head"),
        Member("self_attn.k_proj", "outputs", "key_value_head"),
        Member("self_attn.v_proj", "outputs", "key_value_head"),
        Member("self_attn.o_proj", "inputs", "query_head"),
    )
    attention: str = "self_attn"
    mlp: str = "mlp"
    mlp_input: str = "post_attention_layernorm"
    attention_reads_config: bool = False
    """Whether attention takes its number of heads from the configuration each time it runs."""
    bias_flags: tuple[str, ...] = ()
    """Configuration fields that give every projection of both blocks a bias; empty: it has none."""


# QK-norm over all heads at once: its weights go with the heads they scale. (The usual per-head
# QK-norm has one weight of `head_dim` shared by all heads, and stays.)
_FLAT_QK_NORM = (
    Member("self_attn.q_norm", "norm", "query_head"),
    Member("self_attn.k_norm", "norm", "key_value_head"),
)

_BIAS_FLAGS = ("attention_bias", "mlp_bias")

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        Family(model_type="llama", bias_flags=_BIAS_FLAGS),
        Family(model_type="mistral"),
        Family(model_type="ministral"),
        Family(model_type="qwen2"),
        Family(model_type="qwen3"),
        Family(model_type="smollm3", bias_flags=_BIAS_FLAGS),
        Family(model_type="granite", bias_flags=_BIAS_FLAGS),
        Family(model_type="olmo2", kv_group=Family.kv_group + _FLAT_QK_NORM, mlp_input="mlp"),
        Family(model_type="olmo3", kv_group=Family.kv_group + _FLAT_QK_NORM, mlp_input="mlp"),
        Family(
            model_type="phi3",
            intermediate=(
                Member("mlp.gate_up_proj", "outputs", "channel", part=0),
                Member("mlp.gate_up_proj", "outputs", "channel", part=1),
                Member("mlp.down_proj", "inputs", "channel"),
            ),
            kv_group=(
                Member("self_attn.qkv_proj", "outputs", "query_head", part=0),
                Member("self_attn.qkv_proj", "outputs", "key_value_head", part=1),
                Member("self_attn.qkv_proj", "outputs", "key_value_head", part=2),
                Member("self_attn.o_proj", "inputs", "query_head"),
            ),
            attention_reads_config=True,
        ),
        Family(model_type="gemma"),
        Family(model_type="gemma2", mlp_input="pre_feedforward_layernorm"),
        Family(model_type="gemma3_text", mlp_input="pre_feedforward_layernorm"),
    )
}
