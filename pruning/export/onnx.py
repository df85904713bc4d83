"""ONNX by transformers' exporter: the traced graph has each layer's own shapes.

Inputs are `input_ids`, `attention_mask` and a KV cache per layer, whose length may be 0; so one
graph reads the prompt and writes the tokens.
"""

import logging
from pathlib import Path

import torch
from transformers import DynamicCache, PreTrainedModel

from pruning.errors import ExportRefused

_PAST_TOKENS = 3
_NEW_TOKENS = 4


def export_onnx(model: PreTrainedModel, path: Path) -> None:
    """Write `path`, and its weights beside it.

    Raises:
        ExportRefused: the exporter's packages are missing, or it cannot trace the model.
    """
    try:
        import onnx_ir
        from onnxscript import optimizer
        from transformers.exporters import OnnxConfig, OnnxExporter
    except ImportError as error:
        raise ExportRefused(f"onnx: {error}", hint="pip install onnx onnxscript") from error
    # The exporter reports each of its passes on the console.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    # The exporter's own optimization compares every pair of nodes: longer than all else together at
    # thirty layers. onnxruntime rewrites the graph as well when it opens it.
    config = OnnxConfig(dynamic=True, optimize=False)
    try:
        program = OnnxExporter().export(model, _sample(model), config).program
    except (RuntimeError, ValueError, TypeError) as error:
        raise ExportRefused(f"onnx: the model cannot be traced: {error}") from error
    optimizer.fold_constants(program)
    optimizer.remove_unused_nodes(program)
    onnx_ir.save(program, str(path), external_data=f"{path.name}.data")
    model.config.save_pretrained(path.parent)


@torch.no_grad()
def _sample(model: PreTrainedModel) -> dict[str, torch.Tensor | DynamicCache]:
    """A batch of two with something in its cache: dimensions of 1 and 0 would become constants."""
    ids_BT = torch.arange(2 * (_PAST_TOKENS + _NEW_TOKENS)).view(2, -1) % model.config.vocab_size
    cache = model(ids_BT[:, :_PAST_TOKENS], use_cache=True).past_key_values
    return {
        "input_ids": ids_BT[:, _PAST_TOKENS:],
        "attention_mask": torch.ones_like(ids_BT),
        "past_key_values": cache,
    }
