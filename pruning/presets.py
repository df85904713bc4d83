"""Named methods as recipe fragments: points in the space of `pruning.recipe`. Torch-free."""

from collections.abc import Mapping
from typing import Any

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # Structured optimal brain surgery in one currency (docs/method.md): K-FAC Fisher costs, of
    # groups after repair and of whole blocks, least-squares repair at each cut and a Newton step.
    "espalier": {
        "axes": ("intermediate", "kv_group"),
        "importance": {"kind": "fisher"},
        "allocation": {"kind": "layer_adaptive"},
        "compensation": "newton",
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
    # Sheared-LLaMA (arXiv 2310.06694): masks learned with the weights, held to a uniform shape,
    # then one cut, and training on a mixture that follows the domains' losses.
    "sheared_llama": {
        "axes": ("intermediate", "kv_group"),
        "importance": {
            "kind": "learned_mask",
            "calibration": {"num_samples": 512, "sequence_length": 256, "batch_size": 4},
        },
        "allocation": {"kind": "uniform", "layout": "uniform"},
        "compensation": "none",
        "schedule": {"kind": "learned_mask", "num_increments": 1, "pruning_share": 0.2},
        "recovery": {"kind": "full", "learning_rate": {"kind": "cosine"}},
        "data": {"mixture": {"kind": "dynamic"}},
    },
    # EfficientLLM (arXiv 2502.06663): cut little by little while training, by the saliency that the
    # training steps show, whichever axis costs least next; repaired by least squares at each cut.
    "efficientllm": {
        "axes": ("intermediate", "kv_group"),
        "importance": {
            "kind": "taylor",
            "taylor_order": "mix",
            "calibration": {"num_samples": 32, "sequence_length": 256, "batch_size": 8},
        },
        "allocation": {"kind": "equal_marginal", "layout": "uniform"},
        "compensation": "least_squares",
        "schedule": {
            "kind": "continuous",
            "num_increments": 1,
            "pruning_share": 0.2,
            "steps_per_cut": 2,
        },
        "recovery": {"kind": "full"},
    },
    # SAAP (arXiv 2412.15127): first- and second-order importance fused as two noisy measurements,
    # more from layers whose importance hardly fluctuates, one cut, low-rank recovery.
    "saap": {
        "axes": ("intermediate", "kv_group"),
        "importance": {
            "kind": "fused",
            "calibration": {"num_samples": 10, "sequence_length": 128, "batch_size": 1},
        },
        "allocation": {"kind": "fluctuation", "amplitude": 0.5},
        "compensation": "none",
        "schedule": {"num_increments": 1},
        "recovery": {"kind": "lora"},
    },
    # SliceGPT (arXiv 2401.15024): the residual stream is turned to its principal components and the
    # weakest go; one rotation for the whole model, so that a stock model comes out.
    "slicegpt": {
        "axes": ("hidden",),
        "importance": {
            "kind": "pca_energy",
            "calibration": {"num_samples": 128, "sequence_length": 2048, "batch_size": 1},
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

BEFORE_TRAINING: Mapping[str, Mapping[str, Any]] = {
    # The first training steps do what a Newton step would.
    "espalier": {"compensation": "least_squares"},
}
"""How a preset differs where training follows its cuts."""
