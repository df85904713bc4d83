"""What engines ask of the layers they will serve, as allocation constraints. Torch-free."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pruning.errors import ExportRefused

EQUAL_LAYERS_ONLY = ("sglang", "mlx", "tensorrt-llm")
"""Engines that know one width for all layers of our architectures."""

LLAMA_CPP_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Families that the GGUF writer knows."""

_QUANTIZATION_BLOCK = 32
"""Consecutive weights of a row that llama.cpp's formats scale together."""
_DEFAULT_WIDTH_MULTIPLE = 32


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
    tensor_parallel: int,
    layout: str,
    width_multiple: int,
    constrained_tensor_parallel: int,
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
    if constrained_tensor_parallel % tensor_parallel:
        raise ValueError(
            f"allocation.constraints.tensor_parallel: {constrained_tensor_parallel} is no multiple "
            f"of tensor_parallel, {tensor_parallel}"
        )
    needed = _width_multiple(engines, exports, tensor_parallel)
    if width_multiple % needed:
        raise ValueError(
            f"allocation.constraints.width_multiple: {width_multiple} is no multiple of {needed}, "
            "which what the result is served with needs"
        )


def check_model(
    engines: Sequence[str], exports: Sequence[str], *, model_type: str, tied: bool, layout: str
) -> None:
    """Refuse, from the model's configuration, what llama.cpp could not run afterwards.

    Raises:
        ExportRefused: it has no graph for the family, or for its unequal layers.
    """
    wanted = [export for export in exports if export.startswith("gguf:")]
    if not wanted and "llama.cpp" not in engines:
        return
    param = "output.exports" if wanted else "serve_with"
    if model_type not in LLAMA_CPP_FAMILIES:
        raise ExportRefused(
            f"llama.cpp: no GGUF file is written for model_type {model_type!r}",
            param=param,
            hint=f"families: {', '.join(LLAMA_CPP_FAMILIES)}",
        )
    if model_type == "qwen3" and not tied and layout != "uniform":
        raise ExportRefused(
            "llama.cpp: unequal layers of Qwen 3 need an output head shared with the embeddings, "
            "and this model has its own",
            param=param,
            hint="set allocation.layout to 'uniform'",
        )


def _width_multiple(engines: Sequence[str], exports: Sequence[str], devices: int) -> int:
    llama_cpp = "llama.cpp" in engines or any(
        export.startswith(("gguf:q4", "gguf:q5", "gguf:q8")) for export in exports
    )
    return math.lcm(_QUANTIZATION_BLOCK if llama_cpp else 1, devices)


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
