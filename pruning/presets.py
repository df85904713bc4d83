"""Named methods as recipe fragments: points in the space of `pruning.recipe`. Torch-free."""

from collections.abc import Mapping
from typing import Any

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # Structured optimal brain surgery in one currency (docs/method.md): K-FAC Fisher costs after
    # repair, the same marginal cost everywhere, least-squares repair at each cut.
    "espalier": {
        "axes": ("intermediate", "kv_group"),
        "importance": {"kind": "fisher"},
        "allocation": {"kind": "equal_marginal"},
        "compensation": "least_squares",
        "recovery": {"kind": "full", "learning_rate": {"kind": "wsd"}},
    },
    # Adapt-Pruner (arXiv 2502.03460): Taylor importance inside a layer, input/output similarity
    # between layers, many small cuts with training between them, one warm-up/stable/decay schedule.
    "adapt_pruner": {
        "axes": ("intermediate", "kv_group"),
        "importance": {"kind": "taylor"},
        "allocation": {"kind": "layer_adaptive", "amplitude": 1.0},
        "compensation": "none",
        "schedule": {"token_share": "linear"},
        "recovery": {"kind": "full", "learning_rate": {"kind": "wsd"}},
    },
    # LLM-Pruner (arXiv 2305.11627): Taylor importance with the Fisher term, on a few short texts,
    # the same share of each layer but the first four and the last two, one cut.
    "llm_pruner": {
        "axes": ("intermediate", "kv_group"),
        "importance": {
            "kind": "taylor",
            "taylor_order": "mix",
            "calibration": {"num_samples": 10, "sequence_length": 128, "batch_size": 1},
        },
        "allocation": {
            "kind": "uniform",
            "constraints": {"protected_layers": (0, 1, 2, 3, -2, -1)},
        },
        "compensation": "none",
        "schedule": {"num_increments": 1},
        "recovery": {"kind": "full"},
    },
    # FLAP (arXiv 2312.11983): fluctuation of what enters the output projections, z-scores ranked
    # over all layers, what is lost on average kept as a bias, no training.
    "flap": {
        "axes": ("intermediate", "kv_group"),
        "importance": {
            "kind": "fluctuation",
            "calibration": {"num_samples": 1024, "sequence_length": 128, "batch_size": 16},
        },
        "allocation": {"kind": "global_zscore", "constraints": {"width_multiple": 1}},
        "compensation": "bias",
        "schedule": {"num_increments": 1},
        "recovery": {"kind": "none"},
    },
    # ShortGPT (arXiv 2403.03853): the layers that turn the residual stream least go whole.
    "shortgpt": {
        "axes": ("layer",),
        "importance": {
            "kind": "block_influence",
            "calibration": {"num_samples": 32, "sequence_length": 512, "batch_size": 8},
        },
        "allocation": {"kind": "uniform"},
        "compensation": "none",
        "schedule": {"num_increments": 1},
        "recovery": {"kind": "none"},
    },
    # Minitron (arXiv 2407.14679): activation importance, the same widths in every layer, one cut,
    # distillation from the base model.
    "minitron": {
        "axes": ("intermediate", "kv_group"),
        "importance": {
            "kind": "activation",
            "calibration": {"num_samples": 1024, "sequence_length": 512, "batch_size": 8},
        },
        "allocation": {"kind": "uniform", "layout": "uniform"},
        "compensation": "none",
        "schedule": {"num_increments": 1},
        "recovery": {"kind": "full", "distillation": {"teacher": "base", "weight": 1.0}},
    },
}
