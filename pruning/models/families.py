"""What a decoder layer is: declared once per family, looked up by `model_type`, never traced."""

from dataclasses import dataclass
from typing import Literal

Span = Literal["channel", "key_value_head", "query_head", "expert"]
"""What consecutive entries of a tensor are: one intermediate channel or expert each, or the
`head_dim` entries of a KV head or of a query head. Query heads that share a KV head follow one
another."""

Side = Literal["outputs", "inputs", "norm", "stacked"]


@dataclass(frozen=True)
class Member:
    """A module of a decoder layer that shrinks with an axis.

    A linear layer loses `outputs` (bias included) or `inputs`; a `norm` entries it averages over;
    of weights `stacked` along the first dimension, some of these. Of a fused projection each `part`
    is a member of its own, in the order of its outputs. A head has `repeats` times `head_dim`
    entries, where its query, key and value lie together.
    """

    module: str
    side: Side
    span: Span
    part: int = 0
    repeats: int = 1
    parameter: str = "weight"


@dataclass(frozen=True, kw_only=True)
class Family:
    """The coupled tensors of one architecture.

    `mlp_input` is the module whose input is the residual stream between the two blocks of a layer,
    or before both where they are parallel.
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
    sparse_intermediate: tuple[Member, ...] = ()
    """In place of `intermediate`, in layers that have `experts`: a channel of every expert."""
    expert: tuple[Member, ...] = ()
    experts: str | None = None
    attention: str = "self_attn"
    mlp: str = "mlp"
    mlp_input: str = "post_attention_layernorm"
    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")
    """The norms of a layer that average over the residual stream."""
    final_norm: str = "norm"
    norm_offset: float = 0.0
    """What a norm adds to its weights before it multiplies with them."""
    centres_stream: bool = False
    """Whether norms take away the mean over the residual stream, as LayerNorm does."""
    parallel_flag: str | None = None
    """Configuration field that says whether both blocks read the same residual stream."""
    grouped_heads: bool = True
    """Whether the configuration knows a number of KV heads; else each query head has its own."""
    derives_head_dim: bool = False
    """Whether its own code takes the hidden size over the number of heads for the head size, so
    that it cannot build a layer that lost heads."""
    heads_divide_hidden_size: bool = False
    """Whether its configuration refuses a hidden size that its heads do not divide."""
    attention_reads_config: bool = False
    """Whether attention takes its number of heads from the configuration each time it runs."""
    bias_flags: tuple[str, ...] = ()
    """Configuration fields that give every projection of both blocks a bias; empty: it has none."""

    @property
    def rotatable(self) -> bool:
        """Whether every norm over the stream stands right before the projections that read it."""
        return (
            not self.centres_stream
            and self.norms == Family.norms
            and self.mlp_input == Family.mlp_input
        )

    @property
    def sliceable(self) -> bool:
        """Whether its output projections can carry the stream around each block."""
        return self.rotatable and self.experts is None and self.norm_offset == 0


# QK-norm over all heads at once: its weights go with the heads they scale. (The usual per-head
# QK-norm has one weight of `head_dim` shared by all heads, and stays.)
_FLAT_QK_NORM = (
    Member("self_attn.q_norm", "norm", "query_head"),
    Member("self_attn.k_norm", "norm", "key_value_head"),
)

_POST_NORMS = ("post_attention_layernorm", "post_feedforward_layernorm")
_FOUR_NORMS = ("input_layernorm", "pre_feedforward_layernorm", *_POST_NORMS)

_BIAS_FLAGS = ("attention_bias", "mlp_bias")

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        Family(model_type="llama", bias_flags=_BIAS_FLAGS, heads_divide_hidden_size=True),
        Family(model_type="mistral"),
        Family(model_type="ministral"),
        Family(model_type="qwen2"),
        Family(model_type="qwen3"),
        Family(model_type="smollm3", bias_flags=_BIAS_FLAGS),
        Family(model_type="granite", bias_flags=_BIAS_FLAGS),
        Family(
            model_type="olmo2",
            kv_group=Family.kv_group + _FLAT_QK_NORM,
            mlp_input="mlp",
            norms=_POST_NORMS,
        ),
        Family(
            model_type="olmo3",
            kv_group=Family.kv_group + _FLAT_QK_NORM,
            mlp_input="mlp",
            norms=_POST_NORMS,
        ),
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
        Family(
            model_type="gpt_neox",
            intermediate=(
                Member("mlp.dense_h_to_4h", "outputs", "channel"),
                Member("mlp.dense_4h_to_h", "inputs", "channel"),
            ),
            # Of each head its query, key and value follow one another.
            kv_group=(
                Member("attention.query_key_value", "outputs", "key_value_head", repeats=3),
                Member("attention.dense", "inputs", "query_head"),
            ),
            attention="attention",
            final_norm="final_layer_norm",
            centres_stream=True,
            parallel_flag="use_parallel_residual",
            grouped_heads=False,
            derives_head_dim=True,
        ),
        Family(
            model_type="qwen3_moe",
            sparse_intermediate=(
                Member("mlp.experts", "outputs", "channel", part=0, parameter="gate_up_proj"),
                Member("mlp.experts", "outputs", "channel", part=1, parameter="gate_up_proj"),
                Member("mlp.experts", "inputs", "channel", parameter="down_proj"),
            ),
            expert=(
                Member("mlp.experts", "stacked", "expert", parameter="gate_up_proj"),
                Member("mlp.experts", "stacked", "expert", parameter="down_proj"),
                Member("mlp.gate", "outputs", "expert"),
            ),
            experts="mlp.experts",
        ),
        Family(model_type="gemma", norm_offset=1.0),
        Family(
            model_type="gemma2",
            mlp_input="pre_feedforward_layernorm",
            norms=_FOUR_NORMS,
            norm_offset=1.0,
            heads_divide_hidden_size=True,
        ),
        Family(
            model_type="gemma3_text",
            mlp_input="pre_feedforward_layernorm",
            norms=_FOUR_NORMS,
            norm_offset=1.0,
            heads_divide_hidden_size=True,
        ),
    )
}
