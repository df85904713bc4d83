"""NVIDIA's format for unequal layers: what vLLM's own `DeciLMForCausalLM` runs.

Its layers may lose channels, KV heads, a whole MLP, or a whole attention after the first layer; all
that have attention have the same number of query heads.
"""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from transformers import PreTrainedModel

from pruning.errors import ExportRefused
from pruning.events import LayerWidths
from pruning.models.adapter import adapter_for
from pruning.models.geometry import layer_widths
from pruning.serving import NEMOTRON_NAS_FAMILIES

CONFIGURATION_NAME = "configuration_espalier"

_CONFIGURATION = '''\
"""A Llama configuration with the sizes of each layer. Written by Espalier."""

import copy

from transformers import LlamaConfig


class Sizes:
    """What `vllm.model_executor.models.nemotron_nas` asks of a layer."""

    def __init__(self, **sizes):
        for name, value in sizes.items():
            setattr(self, name, Sizes(**value) if isinstance(value, dict) else value)

    def to_dict(self):
        return {k: v.to_dict() if isinstance(v, Sizes) else v for k, v in vars(self).items()}


class EspalierDeciConfig(LlamaConfig):
    model_type = "nemotron-nas"

    def __init__(self, block_configs=(), **kwargs):
        super().__init__(**kwargs)
        self.block_configs = [Sizes(**block) for block in block_configs]

    def to_dict(self):
        plain = copy.copy(self)
        plain.block_configs = [block.to_dict() for block in self.block_configs]
        return super(EspalierDeciConfig, plain).to_dict()
'''


def export_nemotron_nas(model: PreTrainedModel, directory: Path) -> None:
    """Write configuration and weights.

    Raises:
        ExportRefused: `DeciLMForCausalLM` would not compute this model.
    """
    widths = layer_widths(model)
    num_heads = check_layers(model.config, widths)
    config = _plain(model.config)
    config |= {
        "model_type": "nemotron-nas",
        "architectures": ["DeciLMForCausalLM"],
        "auto_map": {"AutoConfig": f"{CONFIGURATION_NAME}.EspalierDeciConfig"},
        "num_attention_heads": num_heads,
        "num_key_value_heads": max(layer.num_key_value_heads for layer in widths),
        "intermediate_size": max(layer.intermediate_size for layer in widths),
        "head_dim": adapter_for(model.config).head_dim,
        "block_configs": [block_config(layer) for layer in widths],
    }
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    code = directory / f"{CONFIGURATION_NAME}.py"
    code.write_text(_CONFIGURATION, encoding="utf-8")
    save_file(_weights(model), directory / "model.safetensors", metadata={"format": "pt"})


def check_layers(config: Any, widths: tuple[LayerWidths, ...]) -> int:
    """The number of query heads that all attention blocks share.

    Raises:
        ExportRefused: they do not, or something else is not for this format.
    """
    check_family(config)
    if widths[0].num_attention_heads == 0:
        raise _refusal("its first layer must have attention")
    heads = {layer.num_attention_heads for layer in widths} - {0}
    if len(heads) > 1:
        raise _refusal(
            f"it wants the same number of query heads in all layers, not {sorted(heads)}; cut "
            "channels alone (axes: [intermediate])"
        )
    return heads.pop()


def check_family(config: Any) -> None:
    """Refuse, from the configuration alone, what it would compute differently.

    Raises:
        ExportRefused: another family, or a window of attention.
    """
    if config.model_type not in NEMOTRON_NAS_FAMILIES:
        computed = ", ".join(NEMOTRON_NAS_FAMILIES)
        raise _refusal(f"it computes {computed}, not {config.model_type}")
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        raise _refusal("it knows no sliding window")


def _refusal(reason: str) -> ExportRefused:
    return ExportRefused(
        f"nemotron_nas: vLLM's DeciLMForCausalLM cannot run this model: {reason}",
        hint="vLLM's Transformers backend runs the checkpoint itself",
    )


def block_config(layer: LayerWidths) -> dict[str, dict[str, int | bool]]:
    """One entry of `block_configs`."""
    attention: dict[str, int | bool] = {"no_op": layer.num_attention_heads == 0}
    if layer.num_attention_heads:
        attention["n_heads_in_group"] = layer.num_attention_heads // layer.num_key_value_heads
    mlp: dict[str, int | bool] = {"no_op": layer.intermediate_size == 0}
    if layer.intermediate_size:
        mlp["intermediate_size"] = layer.intermediate_size
    return {"attention": attention, "ffn": mlp}


def _plain(config: Any) -> dict[str, Any]:
    """The model's own fields, without those of single layers."""
    said: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    for name in ("per_layer_config", "allow_global_per_layer_attribute_access", "layer_types"):
        said.pop(name, None)
    if config.model_type == "qwen2":
        said["qkv_bias"] = True
    return said


def _weights(model: PreTrainedModel) -> dict[str, Any]:
    tied = model.config.tie_word_embeddings
    found = {}
    for name, tensor in model.state_dict().items():
        if tensor.numel() and not (tied and name == "lm_head.weight"):
            found[name] = tensor.detach().to(model.config.dtype or tensor.dtype).contiguous()
    for index, layer in enumerate(layer_widths(model)):
        if layer.num_attention_heads == 0:
            found = _without(found, f"model.layers.{index}.", ("input_layernorm", "self_attn."))
        if layer.intermediate_size == 0:
            found = _without(found, f"model.layers.{index}.", ("post_attention_layernorm", "mlp."))
    return found


def _without(found: dict[str, Any], layer: str, parts: tuple[str, ...]) -> dict[str, Any]:
    gone = tuple(layer + part for part in parts)
    return {name: tensor for name, tensor in found.items() if not name.startswith(gone)}
