"""Named methods as recipe fragments: points in the space of `pruning.recipe`. Torch-free."""

from collections.abc import Mapping
from typing import Any

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # Adapt-Pruner (arXiv 2502.03460): Taylor importance inside a layer, input/output similarity
    # between layers, many small cuts with training between them, one warm-up/stable/decay schedule.
    # Structured optimal brain surgery in one currency (docs/method.md): K-FAC Fisher costs after
    # repair, the same marginal cost everywhere, least-squares repair at each cut.
    "espalier": {
        "axes": ("intermediate", "kv_group"),
        "importance": {"kind": "fisher"},
        "allocation": {"kind": "equal_marginal"},
        "compensation": "least_squares",
        "recovery": {"kind": "full", "learning_rate": {"kind": "wsd"}},
    },
    "adapt_pruner": {
        "axes": ("intermediate", "kv_group"),
        "importance": {"kind": "taylor"},
        "allocation": {"kind": "layer_adaptive", "amplitude": 1.0},
        "compensation": "none",
        "schedule": {"token_share": "linear"},
        "recovery": {"kind": "full", "learning_rate": {"kind": "wsd"}},
    },
}
