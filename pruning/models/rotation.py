"""Turning the residual stream of a model without changing what it computes.

SliceGPT (arXiv 2401.15024 §3): an RMSNorm without weights passes a rotated vector rotated, so one
rotation can be absorbed by everything that writes to the stream and everything that reads it.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pruning.models.adapter import Adapter, GroupedTensor, adapter_for
from pruning.models.hidden import is_tied, outer_stream_tensors, stream_norms, stream_tensors
from pruning.models.support import require_rotatable


@torch.no_grad()
def free_stream(model: PreTrainedModel) -> None:
    """Move the weights of all norms over the stream into the projections that read it, in place.

    A head that shares the embeddings gets weights of its own: it takes in those of the final norm.

    Raises:
        UnsupportedModel: the family's stream cannot be turned.
    """
    adapter = adapter_for(model.config)
    require_rotatable(adapter.family)
    _untie(model)
    for layer in adapter.layers(model):
        attention, mlp = (layer.get_submodule(name) for name in adapter.family.norms)
        spans = adapter.by_span(layer)
        _fold(adapter, attention, _readers(spans["query_head"] + spans["key_value_head"]))
        _fold(adapter, mlp, _readers(spans["channel"] + spans["expert"]))
    head = model.get_output_embeddings()
    _fold(adapter, stream_norms(adapter, model)[-1], {head.get_parameter("weight")})


@torch.no_grad()
def rotate_stream(model: PreTrainedModel, rotation_DD: Tensor) -> None:
    """Multiply the stream with an orthogonal matrix, in place; `free_stream` comes first.

    Products are fp64, so that the rotation costs no accuracy beyond the weights' own.
    """
    adapter = adapter_for(model.config)
    norms = stream_norms(adapter, model)
    tensors = outer_stream_tensors(adapter, model)
    for layer in adapter.layers(model):
        tensors += stream_tensors(adapter, layer)
    for parameter, dim in {t.parameter: t.dim for t in tensors if t.module not in norms}.items():
        turned = parameter.double().transpose(dim, -1) @ rotation_DD.to(parameter.device)
        parameter.copy_(turned.transpose(dim, -1))


def _untie(model: PreTrainedModel) -> None:
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if is_tied(model):
        head.weight = nn.Parameter(embeddings.get_parameter("weight").detach().clone())
    model.config.tie_word_embeddings = False


def _readers(tensors: Iterable[GroupedTensor]) -> set[nn.Parameter]:
    """The weights [..., in] that read the stream."""
    return {t.parameter for t in tensors if t.side == "outputs" and t.name != "bias"}


def _fold(adapter: Adapter, norm: nn.Module, readers: set[nn.Parameter]) -> None:
    weight, offset = norm.get_parameter("weight"), adapter.family.norm_offset
    for reader in readers:
        reader.copy_(reader.double() * (weight.double() + offset))
    weight.fill_(1 - offset)
