"""Distillation: a pruned model (the student) learns the predictions of a larger one (the teacher).

B sequences, T tokens, N = B * (T - 1) predictions, C of them at a time, D hidden, V vocabulary.
The logits at position t predict token t + 1 in student and teacher alike, so both are cut at the
last position and nothing else is shifted.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, log_softmax
from transformers import PreTrainedModel

from pruning.models.loss import (
    Precision,
    fp32_chunks,
    head_loss,
    head_pieces,
    hidden_and_labels,
    hidden_states,
    output_head,
    predictions_inside,
    product_dtype,
)
from pruning.recipe_parts.recovery import Distillation

_LEAST_REST = 1e-6
"""Of the probability of all other tokens, where rounding leaves none."""


def distillation_loss(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    ids_BT: Tensor,
    distillation: Distillation,
    precision: Precision,
    *,
    separator: int | None = None,
) -> Tensor:
    """Summed over the N predictions of a batch, differentiable once with respect to the student.

    With a `separator` both see each document by itself, as in `hidden_and_labels`.
    """
    hidden_ND, labels_N = hidden_and_labels(student, ids_BT, precision, separator=separator)
    with torch.no_grad():
        teacher_hidden_ND, _ = hidden_and_labels(teacher, ids_BT, precision, separator=separator)
    teacher_head = output_head(teacher)
    teacher_weight_VD = teacher_head.weight.detach().to(product_dtype(precision))

    def chunk_loss(logits_CV: Tensor, start: int) -> tuple[Tensor, Tensor]:
        chunk = slice(start, start + len(logits_CV))
        teacher_hidden_CD = teacher_hidden_ND[chunk].to(teacher_weight_VD.dtype)
        teacher_logits_CV = teacher_head.logits(teacher_hidden_CD, teacher_weight_VD)
        return mixed_loss(logits_CV, teacher_logits_CV, labels_N[chunk], distillation)

    loss = head_loss(
        hidden_ND,
        output_head(student),
        chunk_loss,
        precision=precision,
    )
    if distillation.hidden_weight:
        similarity_N = cosine_similarity(hidden_ND.float(), teacher_hidden_ND.float(), dim=-1)
        loss = loss + distillation.hidden_weight * (1 - similarity_N).sum()
    return loss


@dataclass(frozen=True)
class TopTokens:
    """The teacher's most likely tokens after each position, int64 [B, T - 1, K], and the logarithms
    of their probabilities at the recipe's temperature, fp32."""

    tokens: Tensor
    log_probabilities: Tensor


@torch.no_grad()
def top_tokens(
    teacher: PreTrainedModel,
    ids_BT: Tensor,
    distillation: Distillation,
    precision: Precision,
    *,
    num_tokens: int,
    separator: int | None = None,
) -> TopTokens:
    """What a teacher predicts of a batch, without the long tail."""
    hidden_BTD = hidden_states(teacher, ids_BT, precision, separator=separator)[:, :-1]
    head = output_head(teacher)
    weight_VD = head.weight.to(product_dtype(precision))
    found = [
        log_softmax(logits_CV.div_(distillation.temperature), dim=-1).topk(num_tokens, dim=-1)
        for hidden_PD, start in head_pieces(hidden_BTD.flatten(0, 1), weight_VD.dtype)
        for logits_CV, _ in fp32_chunks(head, hidden_PD @ weight_VD.T, start)
    ]
    shape = (*hidden_BTD.shape[:2], num_tokens)
    return TopTokens(
        tokens=torch.cat([chunk.indices for chunk in found]).view(shape),
        log_probabilities=torch.cat([chunk.values for chunk in found]).view(shape),
    )


def distillation_loss_from(
    student: PreTrainedModel,
    teacher: TopTokens,
    ids_BT: Tensor,
    distillation: Distillation,
    precision: Precision,
    *,
    separator: int | None = None,
) -> Tensor:
    """As `distillation_loss`, from what is known of the teacher: forward KL divergence, with all
    other tokens as one."""
    hidden_ND, labels_N = hidden_and_labels(student, ids_BT, precision, separator=separator)
    inside_BT = predictions_inside(ids_BT, separator)
    tokens_NK, log_p_NK = teacher.tokens[inside_BT], teacher.log_probabilities[inside_BT]

    def chunk_loss(logits_CV: Tensor, start: int) -> tuple[Tensor, Tensor]:
        chunk = slice(start, start + len(logits_CV))
        return _mixed(
            logits_CV,
            labels_N[chunk],
            distillation,
            lambda logits: top_divergence_with_gradient(
                logits, tokens_NK[chunk], log_p_NK[chunk], distillation.temperature
            ),
        )

    return head_loss(
        hidden_ND,
        output_head(student),
        chunk_loss,
        precision=precision,
    )


def top_divergence_with_gradient(
    logits_CV: Tensor, tokens_CK: Tensor, log_p_CK: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Sum over C of KL(p || q) between K tokens and the rest as one, and its gradient [C, V]."""
    log_q_CV = log_softmax(logits_CV / temperature, dim=-1)
    log_q_CK, p_CK = log_q_CV.gather(1, tokens_CK), log_p_CK.exp()
    rest_p_C1 = (1 - p_CK.sum(dim=1, keepdim=True)).clamp_min(_LEAST_REST)
    rest_q_C1 = (1 - log_q_CK.exp().sum(dim=1, keepdim=True)).clamp_min(_LEAST_REST)
    divergence = (p_CK * (log_p_CK - log_q_CK)).sum()
    divergence = divergence + (rest_p_C1 * (rest_p_C1.log() - rest_q_C1.log())).sum()
    grad_CV = log_q_CV.exp_().mul_(1 - rest_p_C1 / rest_q_C1)
    grad_CV.scatter_(1, tokens_CK, log_q_CK.exp() - p_CK)
    return divergence, grad_CV.div_(temperature)


def mixed_loss(
    logits_CV: Tensor, teacher_logits_CV: Tensor, labels_C: Tensor, distillation: Distillation
) -> tuple[Tensor, Tensor]:
    """Divergence and cross-entropy by their weights, summed, and the gradient [C, V]."""
    return _mixed(
        logits_CV,
        labels_C,
        distillation,
        lambda logits: divergence_with_gradient(logits, teacher_logits_CV, distillation),
    )


def _mixed(
    logits_CV: Tensor,
    labels_C: Tensor,
    distillation: Distillation,
    divergence_of: Callable[[Tensor], tuple[Tensor, Tensor]],
) -> tuple[Tensor, Tensor]:
    loss = torch.zeros((), device=logits_CV.device)
    grad_CV = torch.zeros_like(logits_CV)
    weight = distillation.weight
    if weight < 1:
        log_q_CV = log_softmax(logits_CV, dim=-1)
        loss -= (1 - weight) * log_q_CV.gather(1, labels_C[:, None]).sum()
        grad_CV.add_(log_q_CV.exp_(), alpha=1 - weight)
        one_hot_values = torch.full_like(labels_C[:, None], weight - 1, dtype=grad_CV.dtype)
        grad_CV.scatter_add_(1, labels_C[:, None], one_hot_values)
    if weight > 0:
        # Hinton's factor: the gradient's size does not then depend on the temperature.
        scale = weight * distillation.temperature**2
        divergence, divergence_grad_CV = divergence_of(logits_CV)
        loss += scale * divergence
        grad_CV.add_(divergence_grad_CV, alpha=scale)
    return loss, grad_CV


def divergence_with_gradient(
    logits_CV: Tensor, teacher_logits_CV: Tensor, distillation: Distillation
) -> tuple[Tensor, Tensor]:
    """Sum over C of the divergence of student q from teacher p at a temperature, and its gradient.

    KL(p || q), KL(q || p), or Jensen-Shannon ½ KL(p || m) + ½ KL(q || m) with m = (p + q) / 2.
    The gradient is taken with respect to the student's logits; fp32 throughout.
    """
    temperature = distillation.temperature
    log_q_CV = log_softmax(logits_CV / temperature, dim=-1)
    log_p_CV = log_softmax(teacher_logits_CV / temperature, dim=-1)
    q_CV = log_q_CV.exp()
    if distillation.divergence == "forward_kl":
        p_CV = log_p_CV.exp()
        divergence = (p_CV * (log_p_CV - log_q_CV)).sum()
        return divergence, (q_CV - p_CV).div_(temperature)
    if distillation.divergence == "reverse_kl":
        slope_CV = log_q_CV - log_p_CV
        divergence = (q_CV * slope_CV).sum()
    else:
        log_m_CV = torch.logaddexp(log_p_CV, log_q_CV).sub_(math.log(2))
        divergence = 0.5 * (log_p_CV.exp() * (log_p_CV - log_m_CV)).sum()
        slope_CV = 0.5 * (log_q_CV - log_m_CV)
        divergence = divergence + (q_CV * slope_CV).sum()
    return divergence, _through_softmax(slope_CV, q_CV).div_(temperature)


def _through_softmax(slope_CV: Tensor, q_CV: Tensor) -> Tensor:
    """From dD/dq to the gradient of the softmax's input; constants in the slope cancel."""
    return q_CV * (slope_CV - (q_CV * slope_CV).sum(dim=-1, keepdim=True))


@torch.no_grad()
def frozen_copy(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """A copy with weights in `dtype` that learns nothing, for a teacher."""
    return freeze(copy.deepcopy(model), dtype)


@torch.no_grad()
def freeze(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Turn a model into a teacher, in place."""
    # Not model.to(dtype), which would round the rotary frequencies too.
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None
        parameter.data = parameter.data.to(dtype)
    model.eval()
    return model
