"""A model's sizes from its config.json alone: what can be counted before a weight is read.

Torch-free.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from pruning.errors import InvalidModel, UnsupportedModel
from pruning.events import LayerWidths
from pruning.models.families import FAMILIES


@dataclass(frozen=True, kw_only=True)
class _Traits:
    """What config.json leaves to the code of an architecture.

    `projection_bias` None means that `attention_bias` decides, as for the output projection.
    """

    norms_per_layer: int = 2
    norm_biases: bool = False
    attention_bias: bool = False
    """What `attention_bias` is where config.json leaves it out."""
    projection_bias: bool | None = None
    mlp_bias: Literal["never", "by_flag", "always"] = "never"
    gated: bool = True
    grouped_heads: bool = True
    qk_norm: Literal["none", "head", "flat"] = "none"
    tied: bool = False
    head_dim: int | None = None


_GEMMA = {"norms_per_layer": 4, "tied": True, "head_dim": 256}
_TRAITS: Mapping[str, _Traits] = {
    "llama": _Traits(mlp_bias="by_flag"),
    "mistral": _Traits(projection_bias=False),
    "ministral": _Traits(projection_bias=False),
    "qwen2": _Traits(projection_bias=True),
    "qwen3": _Traits(qk_norm="head", head_dim=128),
    "smollm3": _Traits(mlp_bias="by_flag", tied=True),
    "granite": _Traits(mlp_bias="by_flag"),
    "olmo2": _Traits(qk_norm="flat"),
    "olmo3": _Traits(qk_norm="flat"),
    "phi3": _Traits(projection_bias=False),
    "gpt_neox": _Traits(
        norm_biases=True, attention_bias=True, mlp_bias="always", gated=False, grouped_heads=False
    ),
    "qwen3_moe": _Traits(qk_norm="head"),
    "gemma": _Traits(tied=True, head_dim=256),
    "gemma2": _Traits(**_GEMMA),  # type: ignore[arg-type]  # A mapping of mixed values.
    "gemma3_text": _Traits(**_GEMMA, qk_norm="head"),  # type: ignore[arg-type]
}


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Parameters of a decoder layer: of a channel, a KV head, a query head, and of what stays.

    Of a layer of experts, a channel is that of one of them, and `expert` a row of the router.
    """

    channel: int
    key_value_head: int
    query_head: int
    expert: int
    fixed: int

    def of_layer(self, layer: LayerWidths) -> int:
        """Parameters of a layer of these widths."""
        experts = layer.num_experts
        return (
            self.fixed
            + (experts or 0) * self.expert
            + (1 if experts is None else experts) * layer.intermediate_size * self.channel
            + layer.num_key_value_heads * self.key_value_head
            + layer.num_attention_heads * self.query_head
        )


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Everything that decides how many parameters a model has and which of them can go."""

    model_type: str
    vocab_size: int
    hidden_size: int
    head_dim: int
    tied: bool
    layers: tuple[LayerWidths, ...]
    costs: Costs
    costs_without_stream: Costs
    """What of the costs no hidden channel takes part in."""
    final_norm: int = 1
    """Its parameters, in hidden channels."""
    experts_per_token: int = 0
    hidden_divisor: int = 1
    """What the architecture wants hidden sizes to be multiples of."""

    def narrowed(self, hidden_size: int) -> "Architecture":
        """The same with another hidden size."""
        bare, whole = self.costs_without_stream, self.costs
        slopes = {
            name: (getattr(whole, name) - getattr(bare, name)) // self.hidden_size
            for name in Costs.__dataclass_fields__
        }
        costs = Costs(**{n: getattr(bare, n) + hidden_size * slopes[n] for n in slopes})
        return replace(self, hidden_size=hidden_size, costs=costs)

    def untied(self) -> "Architecture":
        """The same with a head of its own."""
        return replace(self, tied=False)

    @property
    def num_prunable_parameters(self) -> int:
        """Parameters of the decoder layers."""
        return sum(map(self.costs.of_layer, self.layers))

    @property
    def num_parameters(self) -> int:
        """All parameters, tied ones once: embeddings, head, final norm, decoder layers."""
        matrices = 1 if self.tied else 2
        outside = (matrices * self.vocab_size + self.final_norm) * self.hidden_size
        return outside + self.num_prunable_parameters


def read_architecture(config: Mapping[str, Any]) -> Architecture:
    """The sizes that a config.json describes.

    Raises:
        UnsupportedModel: no family declares its `model_type`.
        InvalidModel: a size is missing, or is none.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise UnsupportedModel(
            f"model_type {model_type!r} is not supported",
            param="model",
            hint=f"supported: {', '.join(sorted(FAMILIES))}",
        )
    if config.get("quantization_config") is not None:
        raise InvalidModel("the model's weights are quantised", param="model")
    traits = _TRAITS[model_type]
    hidden_size = _size(config, "hidden_size")
    num_heads = _size(config, "num_attention_heads")
    layers = _layers(config)
    if any(layer.num_attention_heads % max(1, layer.num_key_value_heads) for layer in layers):
        raise InvalidModel("query heads do not share the KV heads evenly", param="model")
    head_dim = config.get("head_dim") or traits.head_dim or hidden_size // num_heads
    return Architecture(
        model_type=model_type,
        vocab_size=_size(config, "vocab_size"),
        hidden_size=hidden_size,
        head_dim=head_dim,
        tied=bool(config.get("tie_word_embeddings", traits.tied)),
        layers=layers,
        costs=_costs(config, traits, hidden_size=hidden_size, head_dim=head_dim),
        costs_without_stream=_costs(config, traits, hidden_size=0, head_dim=head_dim),
        final_norm=1 + traits.norm_biases,
        experts_per_token=config.get("num_experts_per_tok") or 0,
        hidden_divisor=num_heads if FAMILIES[model_type].heads_divide_hidden_size else 1,
    )


def _costs(config: Mapping[str, Any], traits: _Traits, *, hidden_size: int, head_dim: int) -> Costs:
    flag = bool(config.get("attention_bias", traits.attention_bias))
    with_bias = flag and traits.projection_bias is not False
    projection_bias = with_bias if traits.projection_bias is None else traits.projection_bias
    by_flag = traits.mlp_bias == "by_flag" and bool(config.get("mlp_bias", False))
    mlp_bias = by_flag or traits.mlp_bias == "always"
    flat_norm = traits.qk_norm == "flat"
    fixed = traits.norms_per_layer * (1 + traits.norm_biases) * hidden_size
    # The biases of what writes to the residual stream are as wide as it.
    fixed += hidden_size * (with_bias and traits.projection_bias is None) + hidden_size * mlp_bias
    if traits.qk_norm == "head":
        fixed += 2 * head_dim
    matrices = 2 + traits.gated
    query = head_dim * (hidden_size + projection_bias + flat_norm)
    return Costs(
        channel=matrices * hidden_size + (matrices - 1) * mlp_bias,
        key_value_head=head_dim * (2 * hidden_size + 2 * projection_bias + flat_norm)
        + query * (not traits.grouped_heads),
        query_head=head_dim * hidden_size + query * traits.grouped_heads,
        expert=hidden_size,
        fixed=fixed,
    )


def _layers(config: Mapping[str, Any]) -> tuple[LayerWidths, ...]:
    num_layers = _size(config, "num_hidden_layers")
    own = config.get("per_layer_config") or {}
    if not isinstance(own, Mapping):
        raise InvalidModel("config.json: per_layer_config is not a mapping", param="model")
    rows = (own.get(str(index)) or own.get(index) or {} for index in range(num_layers))
    return tuple(
        _widths({**config, **row}, least=0 if row else 1, sparse=_is_sparse(config, index))
        for index, row in enumerate(rows)
    )


_MOE_DEFAULTS = {"num_experts": 128, "moe_intermediate_size": 768}


def _is_sparse(config: Mapping[str, Any], index: int) -> bool:
    """Whether a layer's MLP is one of experts."""
    if FAMILIES[config["model_type"]].experts is None:
        return False
    dense = config.get("mlp_only_layers") or ()
    return index not in dense and (index + 1) % (config.get("decoder_sparse_step") or 1) == 0


def _widths(config: Mapping[str, Any], *, least: int, sparse: bool) -> LayerWidths:
    """One layer's sizes; `least` is 0 where a block of its own may be gone."""
    if sparse:
        # Transformers writes one name for the number of experts and reads two.
        own = {**_MOE_DEFAULTS, "num_experts": config.get("num_local_experts", 128), **config}
        dense = _widths(
            {**own, "intermediate_size": own["moe_intermediate_size"]}, least=least, sparse=False
        )
        return dense.model_copy(update={"num_experts": _size(own, "num_experts")})
    num_heads = _size(config, "num_attention_heads", least)
    given = {"num_key_value_heads": num_heads, **_given(config)}
    return LayerWidths(
        intermediate_size=_size(config, "intermediate_size", least),
        num_attention_heads=num_heads,
        num_key_value_heads=_size(given, _KV, least),
    )


_KV = "num_key_value_heads"


def _given(config: Mapping[str, Any]) -> dict[str, Any]:
    value = config.get(_KV)
    return {} if value is None else {_KV: value}


_MAX_SIZE = 10**7


def _size(config: Mapping[str, Any], name: str, least: int = 1) -> int:
    value = config.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= _MAX_SIZE:
        raise InvalidModel(f"config.json: {name} is {value!r}, not a size", param="model")
    return value
