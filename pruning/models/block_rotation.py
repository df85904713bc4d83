"""SliceGPT's own form (arXiv 2401.15024 §3): a rotation for each block, and shortcuts between them.

Every block reads the stream along the principal components of what it is given, the first of them
alone. Between two blocks the stream is turned from one basis to the next by a matrix, which is kept
as further columns of the output projection before it (`espalier.loading.carry_stream`).

Shapes: N tokens, D hidden channels, d of them kept, B sequences, T tokens.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from espalier.loading import carry_stream
from pruning.errors import InvalidData
from pruning.models.adapter import adapter_for
from pruning.models.hidden import stream_norms
from pruning.models.rotation import free_stream
from pruning.models.support import require_sliceable

_ATTENTION, _MLP = "self_attn.o_proj", "mlp.down_proj"


@torch.no_grad()
def slice_blocks(model: PreTrainedModel, batches: Sequence[Tensor], size: int) -> None:
    """Leave `size` hidden channels, in place, each block's own; the last block's are the head's.

    Each rotation is measured on what the sliced blocks before it put out, over token ids [B, T].

    Raises:
        UnsupportedModel: the family's stream cannot be turned block by block.
        InvalidData: there is no batch.
    """
    adapter, config = adapter_for(model.config), model.config
    require_sliceable(adapter.family)
    if not batches:
        raise InvalidData("no calibration text", param="data")
    free_stream(model)
    calls = _layer_calls(model, batches)
    embeddings = model.get_input_embeddings()
    streams = [embeddings(ids_BT) * _embedding_factor(config) for ids_BT in batches]
    basis_Dd = _principal(streams, size)
    _turn(embeddings, basis_Dd, dim=1)
    streams = [stream @ basis_Dd.to(stream) for stream in streams]
    writes = float(getattr(config, "residual_multiplier", 1.0))
    for index, layer in enumerate(adapter.layers(model)):
        for block in _blocks(layer, [call[index] for call in calls]):
            _narrow_norm(block.norm, basis_Dd)
            for reader in block.readers:
                _turn(reader, basis_Dd, dim=1)
            written = [block.run(stream, number) * writes for number, stream in enumerate(streams)]
            whole = [s @ basis_Dd.T.to(s) + w for s, w in zip(streams, written, strict=True)]
            next_Dd = _principal(whole, size)
            shortcut_dd = basis_Dd.T @ next_Dd
            _turn(block.output, next_Dd, dim=0)
            _append(block.output, (shortcut_dd - torch.eye(size)) / writes)
            streams = [stream @ next_Dd.to(stream) for stream in whole]
            basis_Dd = next_Dd
        layer.hidden_size = size  # type: ignore[assignment]
        carry_stream(layer)
    _narrow_norm(stream_norms(adapter, model)[-1], basis_Dd)
    _turn(model.get_output_embeddings(), basis_Dd, dim=1)
    _describe(model, size, adapter.head_dim)


@dataclass(frozen=True)
class _Block:
    norm: nn.Module
    readers: Sequence[nn.Module]
    output: nn.Linear
    run: Callable[[Tensor, int], Tensor]
    """From the stream [B, T, d] and the number of its batch to what the block writes [B, T, D]."""


def _blocks(layer: nn.Module, calls: Sequence[dict[str, Any]]) -> list[_Block]:
    """The two blocks of a layer; `calls` are what it is called with beside the stream."""
    before = layer.get_submodule("input_layernorm")
    between = layer.get_submodule("post_attention_layernorm")
    attention, mlp = layer.get_submodule("self_attn"), layer.get_submodule("mlp")

    def attend(stream_BTd: Tensor, batch: int) -> Tensor:
        output: Tensor = attention(hidden_states=before(stream_BTd), **calls[batch])[0]
        return output

    def feed(stream_BTd: Tensor, _batch: int) -> Tensor:
        output: Tensor = mlp(between(stream_BTd))
        return output

    return [
        _block(layer, before, attention, _ATTENTION, attend),
        _block(layer, between, mlp, _MLP, feed),
    ]


def _block(
    layer: nn.Module,
    norm: nn.Module,
    block: nn.Module,
    output: str,
    run: Callable[[Tensor, int], Tensor],
) -> _Block:
    projection = layer.get_submodule(output)
    assert isinstance(projection, nn.Linear)
    readers = [m for m in block.modules() if isinstance(m, nn.Linear) and m is not projection]
    return _Block(norm, readers, projection, run)


def _layer_calls(model: PreTrainedModel, batches: Sequence[Tensor]) -> list[list[dict[str, Any]]]:
    """By batch and layer, the keyword arguments that each layer of the model is called with."""
    by_shape: dict[torch.Size, list[dict[str, Any]]] = {}
    for ids_BT in batches:
        if ids_BT.shape not in by_shape:
            by_shape[ids_BT.shape] = _capture(model, ids_BT)
    return [by_shape[ids_BT.shape] for ids_BT in batches]


def _capture(model: PreTrainedModel, ids_BT: Tensor) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []

    def keep(_layer: nn.Module, _args: object, kwargs: dict[str, Any]) -> None:
        found.append({k: v for k, v in kwargs.items() if k != "hidden_states"})

    layers = adapter_for(model.config).layers(model)
    handles = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in layers]
    model.base_model(input_ids=ids_BT, use_cache=False)
    for handle in handles:
        handle.remove()
    return found


def _embedding_factor(config: Any) -> float:
    return float(getattr(config, "embedding_multiplier", 1.0))


def _principal(streams: Sequence[Tensor], size: int) -> Tensor:
    """The `size` directions [D, d] with the most energy of the stream, fp64.

    Of the stream as it is, like the official code, not of what the norms make of it, like the
    paper's text: what is cut off is lost to all later blocks as well (docs/presets.md).
    """
    total_DD: Tensor | None = None
    for stream_BTD in streams:
        rows_ND = stream_BTD.flatten(0, -2).double()
        product_DD = rows_ND.T @ rows_ND
        total_DD = product_DD if total_DD is None else total_DD.add_(product_DD)
    assert total_DD is not None
    directions_DD: Tensor = torch.linalg.eigh(total_DD)[1]
    return directions_DD.flip(1)[:, :size]


def _turn(module: nn.Module, basis_Dd: Tensor, *, dim: int) -> None:
    """Express what a weight reads (`dim` 1) or writes (`dim` 0, its bias too) in a basis."""
    weight = module.get_parameter("weight")
    turned = weight.double() @ basis_Dd if dim == 1 else basis_Dd.T @ weight.double()
    module.weight = _like(weight, turned)
    bias = getattr(module, "bias", None)
    if dim == 0 and isinstance(bias, nn.Parameter):
        module.bias = _like(bias, bias.double() @ basis_Dd)
    _say_shape(module)


def _append(output: nn.Linear, columns_dd: Tensor) -> None:
    """Further inputs of an output projection: a row vector times `columns_dd` is added."""
    widened = torch.cat([output.weight.double(), columns_dd.T], dim=1)
    output.weight = _like(output.weight, widened)
    _say_shape(output)


def _like(old: Tensor, values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.to(old.dtype).contiguous(), requires_grad=old.requires_grad)


def _say_shape(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    if isinstance(module, nn.Embedding):
        module.embedding_dim = module.weight.shape[1]


def _narrow_norm(norm: nn.Module, basis_Dd: Tensor) -> None:
    """A norm over D channels, of which the d first alone are not zero: see `refit_stream`."""
    ratio = basis_Dd.shape[0] / basis_Dd.shape[1]
    weight = norm.get_parameter("weight")
    norm.weight = _like(weight, torch.full((basis_Dd.shape[1],), math.sqrt(ratio)))
    _scale_epsilon(norm, ratio)


def _scale_epsilon(norm: Any, ratio: float) -> None:
    norm.variance_epsilon *= ratio


def _describe(model: PreTrainedModel, size: int, head_dim: int) -> None:
    """Make modules and configuration say what the tensors are."""
    config = model.config
    ratio = config.hidden_size / size
    for module in model.modules():
        if getattr(module, "hidden_size", None) == config.hidden_size:
            module.hidden_size = size
    norms = set(stream_norms(adapter_for(config), model))
    for module in model.modules():
        # Norms over heads share the configuration's epsilon, and get the same when opened again.
        if module not in norms and hasattr(module, "variance_epsilon"):
            _scale_epsilon(module, ratio)
    config.head_dim = head_dim
    config.rms_norm_eps = config.rms_norm_eps * ratio
    config.hidden_size = size
    config.carries_stream = True
