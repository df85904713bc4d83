"""Losses on a model's logits that never hold the logits of all tokens, nor their gradient.

B sequences, T tokens, N = B * (T - 1) predictions, P of them in one product with the head, C of
those at a time in fp32, D hidden, V vocabulary.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from pruning.memory import give_back_memory
from pruning.models.attention import blockwise_attention

Precision = Literal["float32", "bfloat16"]

_PRODUCT_TOKENS = 1024
"""P. At a vocabulary of 49,152 their bf16 logits, later their gradient, are 100 MB."""
_CHUNK_TOKENS = {"cpu": 32, "cuda": 512}
"""C. On a CPU a chunk of fp32 logits, 6 MB, stays in its cache; a GPU wants larger kernels."""


@dataclass(frozen=True, kw_only=True)
class OutputHead:
    """How hidden states become logits: softcap(scale * hidden @ weight.T), weight [V, D]."""

    weight: Tensor
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden_CD: Tensor, weight_VD: Tensor) -> Tensor:
        """fp32 logits [C, V]; `weight_VD` is the head's weight in the dtype of the product."""
        return self.finished((hidden_CD @ weight_VD.T).float())

    def finished(self, logits_CV: Tensor) -> Tensor:
        """fp32 logits of the plain product, scaled and capped in place."""
        if self.scale != 1.0:
            logits_CV.mul_(self.scale)
        if self.softcap is not None:
            logits_CV.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits_CV

    def backward_through(self, grad_CV: Tensor, logits_CV: Tensor) -> Tensor:
        """The gradient before softcap and scale, from that of the logits."""
        if self.softcap is not None:
            grad_CV = grad_CV * (1 - (logits_CV / self.softcap) ** 2)
        return grad_CV * self.scale if self.scale != 1.0 else grad_CV


def output_head(model: PreTrainedModel) -> OutputHead:
    """The head of a causal language model, with what Granite and Gemma 2 do to its logits."""
    divisor = getattr(model.config, "logits_scaling", None)
    return OutputHead(
        weight=cast(Tensor, model.get_output_embeddings().weight),
        scale=1.0 / divisor if divisor else 1.0,
        softcap=getattr(model.config, "final_logit_softcapping", None),
    )


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """bf16 products over fp32 weights, or nothing."""
    return torch.autocast(
        device.type,
        dtype=torch.bfloat16,
        enabled=precision == "bfloat16",
        # A pass uses a weight once: its bf16 copy would be kept for nothing until the end.
        cache_enabled=False,
    )


def training_loss(
    model: PreTrainedModel, ids_BT: Tensor, precision: Precision, *, separator: int | None = None
) -> Tensor:
    """Summed cross-entropy over the N predictions of a batch, differentiable once.

    With a `separator` each document that it closes is a text of its own, as in
    `hidden_and_labels`.
    """
    hidden_ND, labels_N = hidden_and_labels(model, ids_BT, precision, separator=separator)
    return cross_entropy_of(hidden_ND, labels_N, output_head(model), precision)


def cross_entropy_of(
    hidden_ND: Tensor,
    labels_N: Tensor,
    head: OutputHead,
    precision: Precision,
    *,
    product_tokens: int | None = None,
) -> Tensor:
    """Summed over the predictions of the last hidden states, differentiable once."""

    def chunk_loss(logits_CV: Tensor, start: int) -> tuple[Tensor, Tensor]:
        labels_C1 = labels_N[start : start + len(logits_CV), None]
        log_q_CV = logits_CV.log_softmax(dim=1)
        loss = -log_q_CV.gather(1, labels_C1).sum()
        one_hot_values = torch.full_like(labels_C1, -1.0, dtype=log_q_CV.dtype)
        return loss, log_q_CV.exp_().scatter_add_(1, labels_C1, one_hot_values)

    return head_loss(
        hidden_ND, head, chunk_loss, precision=precision, product_tokens=product_tokens
    )


ChunkLoss = Callable[[Tensor, int], tuple[Tensor, Tensor]]
"""fp32 logits [C, V] of the predictions from an offset on, to their summed loss and its gradient,
which leaves the logits as they are."""


def head_loss(
    hidden_ND: Tensor,
    head: OutputHead,
    chunk_loss: ChunkLoss,
    *,
    precision: Precision,
    product_tokens: int | None = None,
) -> Tensor:
    """The sum of `chunk_loss` over the logits of `hidden_ND`, differentiable once."""
    loss = _ChunkedHeadLoss.apply(  # type: ignore[no-untyped-call]  # torch's own
        hidden_ND, head.weight, head, chunk_loss, precision, product_tokens
    )
    return cast(Tensor, loss)


@torch.no_grad()
def token_losses(model: PreTrainedModel, ids_BT: Tensor, precision: Precision) -> Tensor:
    """Cross-entropy of each prediction in nats, fp32 [B, T - 1]; 0 for what is only read."""
    hidden_ND, labels_N = hidden_and_labels(model, ids_BT, precision)
    # The head's products are too large for the holes that the layers have left.
    give_back_memory(ids_BT.device)
    head = output_head(model)
    weight_VD = head.weight.to(product_dtype(precision))
    losses = [
        torch.nn.functional.cross_entropy(logits_CV, labels_N[chunk], reduction="none")
        for hidden_PD, start in head_pieces(hidden_ND, weight_VD.dtype)
        for logits_CV, chunk in fp32_chunks(head, hidden_PD @ weight_VD.T, start)
    ]
    losses_BT = torch.zeros(ids_BT[:, 1:].shape, device=ids_BT.device)
    losses_BT[predictions_inside(ids_BT, None)] = torch.cat(losses)
    return losses_BT


def head_pieces(
    hidden_ND: Tensor, dtype: torch.dtype, product_tokens: int | None = None
) -> Iterator[tuple[Tensor, int]]:
    """What the head is multiplied with at once, [P, D], and the first prediction of each."""
    num_tokens = product_tokens or _PRODUCT_TOKENS
    for index, hidden_PD in enumerate(torch.split(hidden_ND.to(dtype), num_tokens)):
        yield hidden_PD, index * num_tokens


def fp32_chunks(head: OutputHead, logits_PV: Tensor, start: int) -> Iterator[tuple[Tensor, slice]]:
    """The finished logits [C, V] of a product, and which predictions of the batch they are."""
    chunk_tokens = _CHUNK_TOKENS[logits_PV.device.type]
    for offset in range(0, len(logits_PV), chunk_tokens):
        rows_CV = logits_PV[offset : offset + chunk_tokens]
        first = start + offset
        # A copy also where the product is in fp32: its rows take the gradient.
        yield (
            head.finished(rows_CV.to(torch.float32, copy=True)),
            slice(first, first + len(rows_CV)),
        )


def hidden_and_labels(
    model: PreTrainedModel, ids_BT: Tensor, precision: Precision, *, separator: int | None = None
) -> tuple[Tensor, Tensor]:
    """Last hidden states [N, D] and the token that follows each, int64 [N].

    With a `separator`, the token that closes a document, positions and attention begin anew after
    it, and the first token of the next document is not predicted: N is smaller by those, and by
    the tokens that are only read.
    """
    hidden_BTD = hidden_states(model, ids_BT, precision, separator=separator)
    hidden_ND, labels_N = hidden_BTD[:, :-1].flatten(0, 1), ids_BT[:, 1:].flatten()
    if separator is None and not only_read(ids_BT).any():
        return hidden_ND, labels_N
    inside_N = predictions_inside(ids_BT, separator).flatten()
    return hidden_ND[inside_N], labels_N[inside_N]


def hidden_states(
    model: PreTrainedModel, ids_BT: Tensor, precision: Precision, *, separator: int | None = None
) -> Tensor:
    """Last hidden states [B, T, D]; with a `separator` each document sees itself alone."""
    # Transformers derives the mask of packed documents from positions that begin anew.
    positions_BT = None if separator is None else document_positions(ids_BT, separator)
    with blockwise_attention(model), autocast(ids_BT.device, precision):
        hidden_BTD: Tensor = model.base_model(
            input_ids=token_ids(ids_BT), position_ids=positions_BT, use_cache=False
        ).last_hidden_state
    return hidden_BTD


def only_read(ids_BT: Tensor) -> Tensor:
    """Which tokens are not learned, [B, T]: a batch has the complements of their ids."""
    return ids_BT < 0


def token_ids(ids_BT: Tensor) -> Tensor:
    """The ids of all tokens of a batch, learned or only read."""
    return torch.where(only_read(ids_BT), ~ids_BT, ids_BT)


def document_positions(ids_BT: Tensor, separator: int) -> Tensor:
    """The place of each token in its document, int64 [B, T]; a sequence may begin inside one."""
    ids_BT = token_ids(ids_BT)
    places_T = torch.arange(ids_BT.shape[1], device=ids_BT.device)
    begins_BT = torch.zeros_like(ids_BT)
    begins_BT[:, 1:] = torch.where(ids_BT[:, :-1] == separator, places_T[1:], 0)
    return places_T - begins_BT.cummax(dim=1).values


def predictions_inside(ids_BT: Tensor, separator: int | None) -> Tensor:
    """Which of the predictions [B, T - 1] are of tokens to learn, inside a document."""
    learned_BT = ~only_read(ids_BT[:, 1:])
    if separator is None:
        return learned_BT
    return learned_BT & (token_ids(ids_BT[:, :-1]) != separator)


def product_dtype(precision: Precision) -> torch.dtype:
    """What weights and hidden states are multiplied in."""
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


class _ChunkedHeadLoss(torch.autograd.Function):
    """Gradients are made in the forward pass, while the logits exist: no second product."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        head: OutputHead,
        chunk_loss: ChunkLoss,
        precision: Precision,
        product_tokens: int | None,
    ) -> Tensor:
        low_VD = weight_VD.to(product_dtype(precision))
        loss = torch.zeros((), device=hidden_ND.device)
        # Calibration freezes the weights: a third of the head's work, and its memory, for nothing.
        grad_weight_VD = (
            torch.zeros_like(weight_VD, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        )
        grads_PD = []
        for low_PD, start in head_pieces(hidden_ND, low_VD.dtype, product_tokens):
            logits_PV = low_PD @ low_VD.T
            for logits_CV, chunk in fp32_chunks(head, logits_PV, start):
                loss_of_chunk, grad_CV = chunk_loss(logits_CV, chunk.start)
                loss += loss_of_chunk
                rows = slice(chunk.start - start, chunk.stop - start)
                # What was a logit is not needed again, and becomes its gradient.
                logits_PV[rows] = head.backward_through(grad_CV, logits_CV)
            grads_PD.append(logits_PV @ low_VD)
            if grad_weight_VD is not None:
                grad_weight_VD += logits_PV.T @ low_PD
            # Before the next product is made.
            del logits_PV
        ctx.save_for_backward(torch.cat(grads_PD).to(hidden_ND.dtype), grad_weight_VD)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden_ND, grad_weight_VD = ctx.saved_tensors
        grad_hidden_ND = grad_hidden_ND * grad.to(grad_hidden_ND.dtype)
        if grad_weight_VD is not None:
            grad_weight_VD = grad_weight_VD * grad
        return (grad_hidden_ND, grad_weight_VD, None, None, None, None)
