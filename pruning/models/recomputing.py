"""Going back through a model that kept only what enters its layers.

B sequences, T tokens, D hidden.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from pruning.memory import give_back_memory
from pruning.models.adapter import adapter_for
from pruning.models.loss import Precision, cross_entropy_of, hidden_and_labels, output_head

_PRODUCT_TOKENS = 256
"""In one product with the head, whose logits are the largest thing here."""


def recomputed_loss(model: PreTrainedModel, ids_BT: Tensor, precision: Precision) -> Tensor:
    """What `training_loss` is, in less memory: nothing inside a layer is kept for the way back."""
    # The layers' inputs, side by side, are too large for the holes of the batch before.
    give_back_memory(ids_BT.device)
    with _recomputing_layers(model):
        hidden_ND, labels_N = hidden_and_labels(model, ids_BT, precision)
    # The head's products are too large for the holes that the layers have left, and what the way
    # back makes would be strewn over those that the head leaves.
    give_back_memory(ids_BT.device)
    loss = cross_entropy_of(
        hidden_ND, labels_N, output_head(model), precision, product_tokens=_PRODUCT_TOKENS
    )
    give_back_memory(ids_BT.device)
    return loss


@contextmanager
def _recomputing_layers(model: PreTrainedModel) -> Iterator[None]:
    """What runs inside keeps of each layer only its input; on the way back the layer runs again.

    Unlike transformers' own this needs no training mode. The way back may lie outside: hooks taken
    off until then see each layer once.
    """
    layers: list[nn.Module] = adapter_for(model.config).layers(model)
    rooms = _Rooms(len(layers))
    for layer in layers:
        layer.forward = partial(_recomputed, layer.forward, rooms)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _recomputed(
    forward: Callable[..., Any], rooms: "_Rooms", hidden_BTD: Tensor, *args: Any, **options: Any
) -> Any:
    return checkpoint(
        forward,
        rooms.moved(hidden_BTD),
        *args,
        use_reentrant=False,
        preserve_rng_state=False,
        **options,
    )


class _Rooms:
    """Where the layers' inputs are kept: side by side, apart from all that comes and goes.

    Left where they were made, between what each layer frees, they would pin a heap full of holes.
    """

    def __init__(self, num_layers: int) -> None:
        self._num_layers = num_layers
        self._rooms: list[Tensor] = []

    def moved(self, hidden_BTD: Tensor) -> Tensor:
        """The same in a room of its own."""
        if not self._rooms:
            self._rooms = [torch.empty_like(hidden_BTD) for _ in range(self._num_layers)]
        return cast(Tensor, _Move.apply(hidden_BTD, self._rooms.pop()))  # type: ignore[no-untyped-call]  # torch's own


class _Move(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_BTD: Tensor, room_BTD: Tensor) -> Tensor:
        ctx.mark_dirty(room_BTD)
        return room_BTD.copy_(hidden_BTD)

    @staticmethod
    def backward(_ctx: Any, grad_BTD: Tensor) -> tuple[Tensor, None]:
        return grad_BTD, None
