"""Going back through a model that kept only what enters its layers."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from pruning.models.adapter import adapter_for


@contextmanager
def recomputing_layers(model: PreTrainedModel) -> Iterator[None]:
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
