"""Losses on a model's logits that never hold the logits of all tokens, nor their gradient.

B sequences, T tokens, N = B * (T - 1) predictions, C of them at a time, D hidden, V vocabulary.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

Precision = Literal["float32", "bfloat16"]

_CHUNK_TOKENS = 512
"""At a vocabulary of 49,152 one chunk of fp32 logits is 100 MB."""


@dataclass(frozen=True, kw_only=True)
class OutputHead:
    """How hidden states become logits: softcap(scale * hidden @ weight.T), weight [V, D]."""

    weight: Tensor
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden_CD: Tensor, weight_VD: Tensor) -> Tensor:
        """fp32 logits [C, V]; `weight_VD` is the head's weight in the dtype of the product."""
        logits_CV = (hidden_CD @ weight_VD.T).float()
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
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def training_loss(
    model: PreTrainedModel, ids_BT: Tensor, precision: Precision, *, separator: int | None = None
) -> Tensor:
    """Summed cross-entropy over the N predictions of a batch, differentiable once.

    With a `separator` each document that it closes is a text of its own, as in
    `hidden_and_labels`.
    """
    hidden_ND, labels_N = hidden_and_labels(model, ids_BT, precision, separator=separator)
    head = output_head(model)

    def chunk_loss(logits_CV: Tensor, start: int) -> tuple[Tensor, Tensor]:
        labels_C = labels_N[start : start + len(logits_CV)]
        norm_C = logits_CV.logsumexp(dim=1)
        label_logits_C = logits_CV.gather(1, labels_C[:, None]).squeeze(1)
        grad_CV = _softmax_minus_one_hot(logits_CV, norm_C, labels_C, keep=head.softcap)
        return (norm_C - label_logits_C).sum(), grad_CV

    return head_loss(hidden_ND, head, chunk_loss, precision=precision, chunk_tokens=_CHUNK_TOKENS)


ChunkLoss = Callable[[Tensor, int], tuple[Tensor, Tensor]]
"""fp32 logits [C, V] of the predictions from an offset on, to their summed loss and its gradient.

It may overwrite the logits unless the head has a softcap.
"""


def head_loss(
    hidden_ND: Tensor,
    head: OutputHead,
    chunk_loss: ChunkLoss,
    *,
    precision: Precision,
    chunk_tokens: int,
) -> Tensor:
    """The sum of `chunk_loss` over the logits of `hidden_ND`, differentiable once."""
    loss = _ChunkedHeadLoss.apply(  # type: ignore[no-untyped-call]  # torch's own
        hidden_ND, head.weight, head, chunk_loss, precision, chunk_tokens
    )
    return cast(Tensor, loss)


@torch.no_grad()
def token_losses(model: PreTrainedModel, ids_BT: Tensor, precision: Precision) -> Tensor:
    """Cross-entropy of each prediction in nats, fp32 [B, T - 1]."""
    hidden_ND, labels_N = hidden_and_labels(model, ids_BT, precision)
    head = output_head(model)
    weight_VD = head.weight.to(product_dtype(precision))
    losses = [
        torch.nn.functional.cross_entropy(
            head.logits(hidden_CD, weight_VD), labels_C, reduction="none"
        )
        for hidden_CD, labels_C in _chunks(hidden_ND.to(weight_VD.dtype), labels_N)
    ]
    return torch.cat(losses).view(ids_BT.shape[0], -1)


def hidden_and_labels(
    model: PreTrainedModel, ids_BT: Tensor, precision: Precision, *, separator: int | None = None
) -> tuple[Tensor, Tensor]:
    """Last hidden states [N, D] and the token that follows each, int64 [N].

    With a `separator`, the token that closes a document, positions and attention begin anew after
    it, and the first token of the next document is not predicted: N is smaller by those.
    """
    hidden_BTD = hidden_states(model, ids_BT, precision, separator=separator)
    hidden_ND, labels_N = hidden_BTD[:, :-1].flatten(0, 1), ids_BT[:, 1:].flatten()
    if separator is None:
        return hidden_ND, labels_N
    inside_N = predictions_inside(ids_BT, separator).flatten()
    return hidden_ND[inside_N], labels_N[inside_N]


def hidden_states(
    model: PreTrainedModel, ids_BT: Tensor, precision: Precision, *, separator: int | None = None
) -> Tensor:
    """Last hidden states [B, T, D]; with a `separator` each document sees itself alone."""
    # Transformers derives the mask of packed documents from positions that begin anew.
    positions_BT = None if separator is None else document_positions(ids_BT, separator)
    with autocast(ids_BT.device, precision):
        hidden_BTD: Tensor = model.base_model(
            input_ids=ids_BT, position_ids=positions_BT, use_cache=False
        ).last_hidden_state
    return hidden_BTD


def document_positions(ids_BT: Tensor, separator: int) -> Tensor:
    """The place of each token in its document, int64 [B, T]; a sequence may begin inside one."""
    places_T = torch.arange(ids_BT.shape[1], device=ids_BT.device)
    begins_BT = torch.zeros_like(ids_BT)
    begins_BT[:, 1:] = torch.where(ids_BT[:, :-1] == separator, places_T[1:], 0)
    return places_T - begins_BT.cummax(dim=1).values


def predictions_inside(ids_BT: Tensor, separator: int | None) -> Tensor:
    """Which of the predictions [B, T - 1] stay inside a document."""
    if separator is None:
        return torch.ones_like(ids_BT[:, 1:], dtype=torch.bool)
    return ids_BT[:, :-1] != separator


def product_dtype(precision: Precision) -> torch.dtype:
    """What weights and hidden states are multiplied in."""
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def _chunks(hidden_ND: Tensor, labels_N: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(
        torch.split(hidden_ND, _CHUNK_TOKENS), torch.split(labels_N, _CHUNK_TOKENS), strict=True
    )


class _ChunkedHeadLoss(torch.autograd.Function):
    """Gradients are made in the forward pass, while a chunk's logits exist: no second product."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        head: OutputHead,
        chunk_loss: ChunkLoss,
        precision: Precision,
        chunk_tokens: int,
    ) -> Tensor:
        low_VD = weight_VD.to(product_dtype(precision))
        loss = torch.zeros((), device=hidden_ND.device)
        # Calibration freezes the weights: a third of the head's work, and its memory, for nothing.
        grad_weight_VD = (
            torch.zeros_like(weight_VD, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        )
        grads_CD = []
        low_ND = hidden_ND.to(low_VD.dtype)
        for index, hidden_CD in enumerate(torch.split(low_ND, chunk_tokens)):
            logits_CV = head.logits(hidden_CD, low_VD)
            loss_of_chunk, grad_CV = chunk_loss(logits_CV, index * chunk_tokens)
            loss += loss_of_chunk
            grad_CV = head.backward_through(grad_CV, logits_CV).to(low_VD.dtype)
            grads_CD.append(grad_CV @ low_VD)
            if grad_weight_VD is not None:
                grad_weight_VD += grad_CV.T @ hidden_CD
        ctx.save_for_backward(torch.cat(grads_CD).to(hidden_ND.dtype), grad_weight_VD)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None, None, None, None]:
        grad_hidden_ND, grad_weight_VD = ctx.saved_tensors
        grad_hidden_ND = grad_hidden_ND * grad.to(grad_hidden_ND.dtype)
        if grad_weight_VD is not None:
            grad_weight_VD = grad_weight_VD * grad
        return (grad_hidden_ND, grad_weight_VD, None, None, None, None)


def _softmax_minus_one_hot(
    logits_CV: Tensor, norm_C: Tensor, labels_C: Tensor, *, keep: float | None
) -> Tensor:
    # Without a softcap nobody needs the logits again, and their 100 MB become the gradient.
    shifted_CV = logits_CV - norm_C[:, None] if keep else logits_CV.sub_(norm_C[:, None])
    grad_CV = shifted_CV.exp_()
    return grad_CV.scatter_add_(1, labels_C[:, None], torch.full_like(norm_C, -1.0)[:, None])
