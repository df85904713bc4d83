"""Writing the sizes of layers into a configuration, so that the saved model opens again."""

import copy
from collections.abc import Mapping, Sequence

from transformers import PretrainedConfig

from pruning.events import LayerWidths
from pruning.models.families import FAMILIES


def write_widths(
    config: PretrainedConfig, widths: tuple[LayerWidths, ...], *, head_dim: int
) -> None:
    """Record layer sizes in a configuration, so that the saved model opens again.

    Equal layers become an ordinary configuration that stock transformers opens; others are written
    as `per_layer_config`, beside the base model's values.
    """
    # Without it some families derive it from the number of heads, which no longer gives it.
    config.head_dim = head_dim
    config.per_layer_config = None
    config.__dict__.pop("allow_global_per_layer_attribute_access", None)
    common = _common_fields(config, widths)
    if common is not None and _is_accepted(config, common, head_dim):
        _set_fields(config, common)
        return
    config.per_layer_config = {i: _own_fields(config, layer) for i, layer in enumerate(widths)}
    # Transformers' own validation reads the model-wide values when it saves and opens.
    config.allow_global_per_layer_attribute_access = config.is_heterogeneous


def _set_fields(config: PretrainedConfig, fields: Mapping[str, int]) -> None:
    for name, value in fields.items():
        setattr(config, name, value)


def _common_fields(
    config: PretrainedConfig, widths: Sequence[LayerWidths]
) -> dict[str, int] | None:
    """What every layer has in its fields; None where two differ in one."""
    every = [_own_fields(config, layer) for layer in widths]
    common = {name: value for fields in every for name, value in fields.items()}
    alike = all(common[name] == fields[name] for fields in every for name in fields)
    return common if alike else None


def _own_fields(config: PretrainedConfig, widths: LayerWidths) -> dict[str, int]:
    """A layer's sizes in the family's own configuration fields."""
    fields = widths.model_dump()
    if not FAMILIES[config.model_type].grouped_heads:
        del fields["num_key_value_heads"]
    if widths.num_experts is not None:
        fields["moe_intermediate_size"] = fields.pop("intermediate_size")
    return fields


def _is_accepted(config: PretrainedConfig, fields: Mapping[str, int], head_dim: int) -> bool:
    """Whether the family takes these model-wide: Llama wants heads to divide the hidden size."""
    if 0 in fields.values():
        return False
    whole = config.hidden_size == fields["num_attention_heads"] * head_dim
    if FAMILIES[config.model_type].derives_head_dim and not whole:
        return False
    trial = copy.deepcopy(config)
    try:
        _set_fields(trial, fields)
        trial.validate_architecture()
    except ValueError:
        return False
    return True
