"""Going back through a model that kept only what enters its layers."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from pruning.memory import give_back_memory
from pruning.models.adapter import adapter_for
from pruning.models.loss import Precision, cross_entropy_of, hidden_and_labels, output_head


def recomputed_loss(model: PreTrainedModel, ids_BT: Tensor, precision: Precision) -> Tensor:
    """What `training_loss` is, in less memory: nothing inside a layer is kept for the way back."""
    with _recomputing_layers(model):
        hidden_ND, labels_N = hidden_and_labels(model, ids_BT, precision)
    # The head's products are too large for the holes between what enters the layers, and what the
    # way back makes would be strewn over those that the head leaves.
    give_back_memory(ids_BT.device)
    loss = cross_entropy_of(hidden_ND, labels_N, output_head(model), precision)
    give_back_memory(ids_BT.device)
    return loss


@contextmanager
def _recomputing_layers(model: PreTrainedModel) -> Iterator[None]:
    """What runs inside keeps of each layer only its input; on the way back the layer runs again.

    Unlike transformers' own this needs no training mode. The way back may lie outside: hooks taken
    off until then see each layer once.
    """
    layers: list[nn.Module] = adapter_for(model.config).layers(model)
    for layer in layers:
        layer.forward = partial(
            checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False
        )
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
