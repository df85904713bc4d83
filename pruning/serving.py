"""What engines ask of the layers they will serve, as allocation constraints. Torch-free."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

from pruning.errors import ExportRefused

EQUAL_LAYERS_ONLY = ("sglang", "mlx", "tensorrt-llm")
"""Engines that know one width for all layers of our architectures."""

LLAMA_CPP_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Families that the GGUF writer knows."""

NEMOTRON_NAS_FAMILIES = ("llama", "mistral", "qwen2")
"""Families that vLLM's `DeciLMForCausalLM` computes."""

_QUANTIZATION_BLOCK = 32
"""Consecutive weights of a row that llama.cpp's formats scale together."""
_DEFAULT_WIDTH_MULTIPLE = 32
_DEFAULT_HIDDEN_MULTIPLE = 8


class Constraints(Protocol):
    """What this asks of a recipe's `allocation.constraints`."""

    @property
    def width_multiple(self) -> int: ...
    @property
    def hidden_multiple(self) -> int: ...
    @property
    def tensor_parallel(self) -> int: ...
    @property
    def protected_layers(self) -> tuple[int, ...]: ...


def fill(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Write down the constraints that follow from `serve_with`, `tensor_parallel` and the exports.

    Only where the request says nothing itself: a contradiction is for `check` to name.
    """
    filled = dict(recipe)
    engines = _strings(recipe.get("serve_with"))
    output = recipe.get("output")
    exports = _strings(output.get("exports")) if isinstance(output, Mapping) else []
    allocation = recipe.get("allocation", {})
    devices = recipe.get("tensor_parallel", 1)
    if not isinstance(allocation, Mapping) or not isinstance(devices, int) or devices < 1:
        return filled
    constraints = allocation.get("constraints", {})
    if not isinstance(constraints, Mapping):
        return filled
    derived: dict[str, Any] = {}
    if devices > 1:
        derived["tensor_parallel"] = devices
    if engines or exports or devices > 1:
        needed = _width_multiple(engines, exports, devices)
        derived["width_multiple"] = math.lcm(_DEFAULT_WIDTH_MULTIPLE, needed)
        blocks = _quantization_block(engines, exports)
        derived["hidden_multiple"] = math.lcm(_DEFAULT_HIDDEN_MULTIPLE, blocks)
    if derived:
        layout = {"layout": "uniform"} if _equal_only(engines, exports) else {}
        filled["allocation"] = {
            **layout,
            **_said(allocation),
            "constraints": {**derived, **_said(constraints)},
        }
    return filled


def check(
    engines: Sequence[str],
    exports: Sequence[str],
    *,
    axes: Collection[str],
    layout: str,
    rotation: str,
    tensor_parallel: int,
    constraints: Constraints,
) -> None:
    """Refuse a recipe whose result could not be served as it asks.

    Raises:
        ValueError: the message says which engine needs what.
    """
    equal_only = _equal_only(engines, exports)
    if equal_only and layout != "uniform":
        raise ValueError(
            f"serve_with: {', '.join(equal_only)} run models with equal layers only; "
            "set allocation.layout to 'uniform', or add 'padded' to output.exports"
        )
    _check_shortcuts(engines, exports, rotation)
    _check_blocks(engines, exports, axes)
    if "nemotron_nas" in exports:
        _check_nemotron_nas(axes, layout, constraints.protected_layers)
    if constraints.tensor_parallel % tensor_parallel:
        raise ValueError(
            f"allocation.constraints.tensor_parallel: {constraints.tensor_parallel} is no multiple "
            f"of tensor_parallel, {tensor_parallel}"
        )
    for name, found, needed in (
        (
            "width_multiple",
            constraints.width_multiple,
            _width_multiple(engines, exports, tensor_parallel),
        ),
        (
            "hidden_multiple",
            constraints.hidden_multiple,
            _quantization_block(engines, exports) if "hidden" in axes else 1,
        ),
    ):
        if found % needed:
            raise ValueError(
                f"allocation.constraints.{name}: {found} is no multiple of {needed}, "
                "which what the result is served with needs"
            )


def _check_shortcuts(engines: Sequence[str], exports: Sequence[str], rotation: str) -> None:
    others = [*exports, *(engine for engine in engines if engine != "transformers")]
    if rotation == "per_block" and others:
        raise ValueError(
            f"importance.rotation: {', '.join(others)} has no place for the shortcuts between "
            "blocks that 'per_block' leaves; set 'global'"
        )


def _check_blocks(engines: Sequence[str], exports: Sequence[str], axes: Collection[str]) -> None:
    if "mlp_block" in axes and _in_llama_cpp(engines, exports):
        raise ValueError(
            "axes: llama.cpp computes layers without an MLP wrongly; leave out 'mlp_block', or "
            "remove whole layers (axes: ['layer'])"
        )
    if "attention_block" in axes and "remote_code" in exports:
        raise ValueError(
            "axes: stock modules cannot be built without heads, so the export 'remote_code' does "
            "not go with 'attention_block'; ask for 'padded'"
        )


def _check_nemotron_nas(
    axes: Collection[str], layout: str, protected_layers: Collection[int]
) -> None:
    uneven = [axis for axis in ("kv_group", "query_head") if axis in axes]
    if uneven and layout != "uniform":
        raise ValueError(
            "output.exports: 'nemotron_nas' wants the same number of query heads in all layers; "
            f"leave {' and '.join(uneven)} out of axes, or set allocation.layout to 'uniform'"
        )
    if "attention_block" in axes and 0 not in protected_layers:
        raise ValueError(
            "output.exports: 'nemotron_nas' wants attention in the first layer; add 0 to "
            "allocation.constraints.protected_layers"
        )


def check_model(
    engines: Sequence[str],
    exports: Sequence[str],
    *,
    model_type: str,
    tied: bool,
    layout: str,
    axes: Collection[str],
) -> None:
    """Refuse, from the model's configuration, what an engine could not run afterwards.

    Raises:
        ExportRefused: it has no graph for the family, or for its unequal layers.
    """
    if "nemotron_nas" in exports and model_type not in NEMOTRON_NAS_FAMILIES:
        raise ExportRefused(
            f"nemotron_nas: vLLM's DeciLMForCausalLM computes no model_type {model_type!r}",
            param="output.exports",
            hint=f"families: {', '.join(NEMOTRON_NAS_FAMILIES)}; vLLM's Transformers backend runs "
            "the checkpoint itself",
        )
    if not _in_llama_cpp(engines, exports):
        return
    param = "output.exports" if any(e.startswith("gguf:") for e in exports) else "serve_with"
    if model_type not in LLAMA_CPP_FAMILIES:
        raise ExportRefused(
            f"llama.cpp: no GGUF file is written for model_type {model_type!r}",
            param=param,
            hint=f"families: {', '.join(LLAMA_CPP_FAMILIES)}",
        )
    if model_type != "qwen3" or layout == "uniform":
        return
    if not tied:
        raise ExportRefused(
            "llama.cpp: unequal layers of Qwen 3 need an output head shared with the embeddings, "
            "and this model has its own",
            param=param,
            hint="set allocation.layout to 'uniform'",
        )
    if "attention_block" in axes:
        raise ExportRefused(
            "llama.cpp: its graph for unequal layers of Qwen 3 wants attention in every layer",
            param=param,
            hint="leave 'attention_block' out of axes",
        )


def _in_llama_cpp(engines: Sequence[str], exports: Sequence[str]) -> bool:
    return "llama.cpp" in engines or any(export.startswith("gguf:") for export in exports)


def _quantization_block(engines: Sequence[str], exports: Sequence[str]) -> int:
    """What every row's length must be a multiple of."""
    rounded = any(export.startswith(("gguf:q4", "gguf:q5", "gguf:q8")) for export in exports)
    return _QUANTIZATION_BLOCK if rounded or "llama.cpp" in engines else 1


def _width_multiple(engines: Sequence[str], exports: Sequence[str], devices: int) -> int:
    return math.lcm(_quantization_block(engines, exports), devices)


def _equal_only(engines: Sequence[str], exports: Sequence[str]) -> list[str]:
    if "padded" in exports:
        return []
    return [engine for engine in engines if engine in EQUAL_LAYERS_ONLY]


def _strings(value: object) -> list[str]:
    return (
        [item for item in value if isinstance(item, str)] if isinstance(value, list | tuple) else []
    )


def _said(part: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in part.items() if not (isinstance(v, str) and v == "auto")}
