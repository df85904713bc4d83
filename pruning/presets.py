"""Named methods as recipe fragments: each is a point in the space of `pruning.recipe`. Torch-free."""

from collections.abc import Mapping
from typing import Any

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # Adapt-Pruner (arXiv 2502.03460): Taylor importance inside a layer, layer input/output similarity
    # between layers, many small cuts with training between them, one warm-up/stable/decay schedule.
    "adapt_pruner": {
        "axes": ("intermediate", "kv_group"),
        "importance": {"kind": "taylor"},
        "allocation": {"kind": "layer_adaptive", "amplitude": 1.0},
        "compensation": "none",
        "schedule": {"token_share": "linear"},
        "recovery": {"kind": "full", "learning_rate": {"kind": "wsd"}},
    },
}
