"""A model's sizes from its config.json alone: what can be counted before a weight is read.

Torch-free.
"""

from collections.abc import Mapping
from dataclasses import dataclass
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
    projection_bias: bool | None = None
    mlp_bias: bool = False
    qk_norm: Literal["none", "head", "flat"] = "none"
    tied: bool = False
    head_dim: int | None = None


_GEMMA = {"norms_per_layer": 4, "tied": True, "head_dim": 256}
_TRAITS: Mapping[str, _Traits] = {
    "llama": _Traits(mlp_bias=True),
    "mistral": _Traits(projection_bias=False),
    "ministral": _Traits(projection_bias=False),
    "qwen2": _Traits(projection_bias=True),
    "qwen3": _Traits(qk_norm="head", head_dim=128),
    "smollm3": _Traits(mlp_bias=True, tied=True),
    "granite": _Traits(mlp_bias=True),
    "olmo2": _Traits(qk_norm="flat"),
    "olmo3": _Traits(qk_norm="flat"),
    "phi3": _Traits(projection_bias=False),
    "gemma": _Traits(tied=True, head_dim=256),
    "gemma2": _Traits(**_GEMMA),  # type: ignore[arg-type]  # A mapping of mixed values.
    "gemma3_text": _Traits(**_GEMMA, qk_norm="head"),  # type: ignore[arg-type]
}


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Parameters of a decoder layer: of a channel, a KV head, a query head, and of what stays."""

    channel: int
    key_value_head: int
    query_head: int
    fixed: int

    def of_layer(self, layer: LayerWidths) -> int:
        """Parameters of a layer of these widths."""
        return (
            self.fixed
            + layer.intermediate_size * self.channel
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

    @property
    def num_prunable_parameters(self) -> int:
        """Parameters of the decoder layers."""
        return sum(map(self.costs.of_layer, self.layers))

    @property
    def num_parameters(self) -> int:
        """All parameters, tied ones once: embeddings, head, final norm, decoder layers."""
        matrices = 1 if self.tied else 2
        outside = matrices * self.vocab_size * self.hidden_size + self.hidden_size
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
    )


def _costs(config: Mapping[str, Any], traits: _Traits, *, hidden_size: int, head_dim: int) -> Costs:
    with_bias = bool(config.get("attention_bias", False)) and traits.projection_bias is not False
    projection_bias = with_bias if traits.projection_bias is None else traits.projection_bias
    mlp_bias = traits.mlp_bias and bool(config.get("mlp_bias", False))
    flat_norm = traits.qk_norm == "flat"
    fixed = traits.norms_per_layer * hidden_size
    # The biases of what writes to the residual stream are as wide as it.
    fixed += hidden_size * (with_bias and traits.projection_bias is None) + hidden_size * mlp_bias
    if traits.qk_norm == "head":
        fixed += 2 * head_dim
    return Costs(
        channel=3 * hidden_size + 2 * mlp_bias,
        key_value_head=head_dim * (2 * hidden_size + 2 * projection_bias + flat_norm),
        query_head=head_dim * (2 * hidden_size + projection_bias + flat_norm),
        fixed=fixed,
    )


def _layers(config: Mapping[str, Any]) -> tuple[LayerWidths, ...]:
    num_layers = _size(config, "num_hidden_layers")
    own = config.get("per_layer_config") or {}
    if not isinstance(own, Mapping):
        raise InvalidModel("config.json: per_layer_config is not a mapping", param="model")
    rows = (own.get(str(index)) or own.get(index) or {} for index in range(num_layers))
    return tuple(_widths({**config, **row}, least=0 if row else 1) for row in rows)


def _widths(config: Mapping[str, Any], *, least: int) -> LayerWidths:
    """One layer's sizes; `least` is 0 where a block of its own may be gone."""
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
