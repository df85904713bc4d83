"""A request laid over the preset that it names, so that what was written wins."""

from collections.abc import Mapping
from typing import Any

from pruning.presets import BEFORE_TRAINING, PRESETS
from pruning.recipe_parts.method import DEPTH_AXES


def lay_over_preset(request: Mapping[str, Any]) -> dict[str, Any]:
    """The preset's fragment of the recipe, and `request` over it."""
    method = request.get("method", "espalier")
    fragment = _fragment(method, request) if isinstance(method, str) else {}
    return _overlay(_yielding(fragment, request), _long_data(request))


def _fragment(method: str, request: Mapping[str, Any]) -> Mapping[str, Any]:
    fragment = PRESETS.get(method, {})
    if _asked(fragment, request, "recovery").get("kind") == "none":
        return fragment
    return _overlay(fragment, BEFORE_TRAINING.get(method, {}))


def _yielding(fragment: Mapping[str, Any], request: Mapping[str, Any]) -> Mapping[str, Any]:
    """A preset's fragment without what the request makes senseless.

    Repair of whole blocks; a Newton step with curvatures that nothing measures.
    """
    axes = request.get("axes")
    if isinstance(axes, list | tuple) and set(DEPTH_AXES) & {str(axis) for axis in axes}:
        fragment = {**fragment, "compensation": "none"}
    elif fragment.get("compensation") == "newton" and (
        _asked(fragment, request, "importance").get("kind") != "fisher"
    ):
        fragment = {**fragment, "compensation": "least_squares"}
    data = request.get("data")
    if isinstance(data, Mapping) and data.get("evaluation") not in (None, "auto"):
        # A mixture that follows the domains' losses needs text held out of each.
        fragment = {key: part for key, part in fragment.items() if key != "data"}
    return fragment


def _asked(fragment: Mapping[str, Any], request: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    """A part of the recipe as the preset has it, and what the request says of it."""
    asked = request.get(part)
    return _overlay(fragment.get(part, {}), asked if isinstance(asked, Mapping) else {})


def _long_data(request: Mapping[str, Any]) -> Mapping[str, Any]:
    """A request whose data, if given as a text alone, can be laid over a preset's."""
    data = request.get("data")
    return {**request, "data": {"train": data}} if isinstance(data, str) else request


def _overlay(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`, recursively; `"auto"` in `over` leaves what `base` says."""
    merged = dict(base)
    for key, value in over.items():
        if isinstance(value, str) and value == "auto" and key in base:
            continue
        below = merged.get(key)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        merged[key] = _overlay(below, value) if both else value  # type: ignore[arg-type]
    return merged
