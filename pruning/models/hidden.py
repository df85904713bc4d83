"""The tensors that are as wide as the residual stream: what goes with a hidden channel."""

import math

import torch
from torch import nn
from transformers import PreTrainedModel

from pruning.models.adapter import Adapter, GroupedTensor, adapter_for
from pruning.models.families import Side


def stream_tensors(adapter: Adapter, layer: nn.Module) -> list[GroupedTensor]:
    """Every parameter of `layer` with a dimension of hidden channels, each once."""
    found: list[GroupedTensor] = []
    for tensors in adapter.by_span(layer).values():
        for tensor in tensors:
            if tensor.name == "bias" or tensor.side not in ("outputs", "inputs"):
                continue
            reads = tensor.side == "outputs"
            dim = tensor.parameter.dim() - (1 if reads else 2)
            side: Side = "inputs" if reads else "outputs"
            found.append(GroupedTensor(tensor.module, tensor.name, dim, 1, side))
            if not reads and getattr(tensor.module, "bias", None) is not None:
                found.append(GroupedTensor(tensor.module, "bias", 0, 1, side))
    for name in adapter.family.norms:
        found.extend(_of_norm(layer.get_submodule(name)))
    return list({id(tensor.parameter): tensor for tensor in found}.values())


def outer_stream_tensors(adapter: Adapter, model: PreTrainedModel) -> list[GroupedTensor]:
    """Those outside the layers: embeddings, final norm and head, which may share the embeddings."""
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    found = [GroupedTensor(embeddings, "weight", 1, 1, "outputs")]
    if head is not None:
        found.append(GroupedTensor(head, "weight", 1, 1, "inputs"))
    return found + _of_norm(model.base_model.get_submodule(adapter.family.final_norm))


def stream_norms(adapter: Adapter, model: PreTrainedModel) -> list[nn.Module]:
    """The norms over the residual stream, the final one last."""
    layers, names = adapter.layers(model), adapter.family.norms
    norms = [layer.get_submodule(name) for layer in layers for name in names]
    return [*norms, model.base_model.get_submodule(adapter.family.final_norm)]


@torch.no_grad()
def refit_stream(model: PreTrainedModel, hidden_size: int) -> None:
    """Make a model whose tensors have `hidden_size` channels left compute what it did with the
    others at zero.

    An RMSNorm over d of D channels divides by a mean that is D / d times larger: with weights and
    epsilon scaled to match, it is exactly the norm over D channels of which the others are zero.
    """
    config, adapter = model.config, adapter_for(model.config)
    ratio = config.hidden_size / hidden_size
    if ratio == 1:
        return
    _scale_norms(model, adapter, math.sqrt(ratio))
    _scale_embeddings(model, math.sqrt(ratio), hidden_size)
    for module in model.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon = module.variance_epsilon * ratio
        elif hasattr(module, "eps"):
            module.eps = module.eps * ratio
        for name in ("hidden_size", "hidden_dim", "embedding_dim"):
            if getattr(module, name, None) == config.hidden_size:
                setattr(module, name, hidden_size)
    # Without it some families derive it from the hidden size, which no longer gives it.
    config.head_dim = adapter.head_dim
    config.rms_norm_eps = config.rms_norm_eps * ratio
    config.hidden_size = hidden_size


def _scale_norms(model: PreTrainedModel, adapter: Adapter, scale: float) -> None:
    norms, offset = stream_norms(adapter, model), adapter.family.norm_offset
    if _multiplies_embeddings(model) and is_tied(model):
        # The head's weights gain with the embeddings' what the final norm would gain.
        norms.pop()
    for norm in norms:
        weight = norm.get_parameter("weight")
        weight.copy_((weight + offset) * scale - offset)


def _scale_embeddings(model: PreTrainedModel, scale: float, hidden_size: int) -> None:
    """Gemma multiplies embeddings by the root of the hidden size, which is less now."""
    embeddings = model.get_input_embeddings()
    if _multiplies_embeddings(model):
        embeddings.get_parameter("weight").mul_(scale)
        embeddings.scalar_embed_scale = math.sqrt(hidden_size)
        embeddings.get_buffer("embed_scale").fill_(math.sqrt(hidden_size))


def _multiplies_embeddings(model: PreTrainedModel) -> bool:
    return hasattr(model.get_input_embeddings(), "embed_scale")


def is_tied(model: PreTrainedModel) -> bool:
    """Whether the head shares the embeddings' weights."""
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def _of_norm(norm: nn.Module) -> list[GroupedTensor]:
    return [
        GroupedTensor(norm, name, 0, 1, "norm")
        for name in ("weight", "bias")
        if getattr(norm, name, None) is not None
    ]
