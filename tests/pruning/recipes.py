"""A recipe for the tiny model and a corpus on disk, small enough to run in a second or two."""

import json
from pathlib import Path
from typing import Any

from pruning.recipe import Recipe
from tests.pruning.text import make_documents


def write_corpus(path: Path, *, num_documents: int = 60, seed: int = 0) -> Path:
    """A JSON Lines file of the test grammar."""
    rows = [json.dumps({"text": document}) for document in make_documents(num_documents, seed=seed)]
    path.write_text("\n".join(rows) + "\n")
    return path


def make_recipe(model_dir: Path, corpus: Path, **changes: Any) -> Recipe:
    """Three increments of four optimizer steps in fp32, to 70 % of the tiny Llama's layers."""
    return Recipe.model_validate(
        {
            "model": str(model_dir),
            "target": "30%",
            "data": {"train": str(corpus), "held_out_fraction": 0.1},
            "importance": {
                "calibration": {"num_samples": 8, "sequence_length": 32, "batch_size": 4}
            },
            "allocation": {"constraints": {"width_multiple": 8, "min_intermediate_size": 8}},
            "schedule": {"num_increments": 3, "num_tokens": 12 * 256, "token_share": "constant"},
            "recovery": {
                "sequence_length": 64,
                "batch_sequences": 4,
                "precision": "float32",
                "learning_rate": {"peak": 3e-3},
            },
            "evaluation": {"context_length": 64, "speed": False},
            **changes,
        }
    )
