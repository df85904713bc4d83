"""Making good for a cut before it is made: what stays is changed so that the loss is least."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pruning.brain_surgeon import refitted
from pruning.models.projections import BlockKey, output_projections
from pruning.plan import PruningPlan
from pruning.scores import Scores
from pruning.surgery import kept_inputs


@torch.no_grad()
def fold_factors(model: PreTrainedModel, factors: Mapping[BlockKey, Tensor]) -> None:
    """Scale in place the inputs of output projections by `factors` [I], as their masks did."""
    for key, tensor in output_projections(model).items():
        if key in factors:
            tensor.parameter.mul_(factors[key].to(tensor.parameter))


@torch.no_grad()
def fold_means(
    model: PreTrainedModel, plan: PruningPlan, *, previous: PruningPlan, scores: Scores
) -> None:
    """Add to each output projection's bias, in place, what its lost inputs contribute on average.

    FLAP (arXiv 2312.11983 eq. 7): W (x - mean) is all that a cut then loses. Columns about to be
    cut become zero.

    Raises:
        InvalidPlan: `plan` does not follow from `previous`; nothing has been changed then.
    """
    for key, weight_OI, kept_K, bias_O in _losing_inputs(model, plan, previous):
        mean_I = _input_mean(scores, key, weight_OI)
        mean_I[kept_K] = 0
        _add(bias_O, weight_OI.double() @ mean_I)
        _leave_only(weight_OI, kept_K, weight_OI[:, kept_K])


@torch.no_grad()
def refit_outputs(
    model: PreTrainedModel,
    plan: PruningPlan,
    *,
    previous: PruningPlan,
    inputs: Mapping[BlockKey, Tensor],
    ridge: float,
) -> None:
    """Refit in place, by least squares, the columns of output projections that `plan` keeps.

    `inputs` are the second moments of each projection's inputs in the model at `previous`. Columns
    about to be cut become zero, so that the model computes already what it will after the cut.

    Raises:
        InvalidPlan: `plan` does not follow from `previous`; nothing has been changed then.
    """
    for key, weight_OI, kept_K, _ in _losing_inputs(model, plan, previous):
        refit_OK = refitted(weight_OI.detach(), inputs[key], kept_K, ridge=ridge)
        _leave_only(weight_OI, kept_K, refit_OK)


@torch.no_grad()
def refit_with_biases(
    model: PreTrainedModel,
    plan: PruningPlan,
    *,
    previous: PruningPlan,
    inputs: Mapping[BlockKey, Tensor],
    scores: Scores,
    ridge: float,
) -> None:
    """Refit in place, by least squares, kept columns and biases of output projections together.

    `inputs` as for `refit_outputs`, `scores` with the inputs' means, of the same text. Without a
    ridge no other weight and bias come closer, so it is never worse than `fold_means`. Columns
    about to be cut become zero.

    Raises:
        InvalidPlan: `plan` does not follow from `previous`; nothing has been changed then.
    """
    for key, weight_OI, kept_K, bias_O in _losing_inputs(model, plan, previous):
        mean_I = _input_mean(scores, key, weight_OI)
        moments_II = inputs[key].double()
        centred_II = moments_II - torch.outer(mean_I, mean_I)
        # What hardly fluctuates is less than the rounding of its own square.
        centred_II.diagonal().add_(_ROUNDING * moments_II.diagonal())
        refit_OK = refitted(weight_OI.detach(), centred_II, kept_K, ridge=ridge)
        _add(bias_O, weight_OI.double() @ mean_I - refit_OK.double() @ mean_I[kept_K])
        _leave_only(weight_OI, kept_K, refit_OK)


_ROUNDING = 1e-6


@torch.no_grad()
def merge_similar(
    model: PreTrainedModel,
    plan: PruningPlan,
    *,
    previous: PruningPlan,
    inputs: Mapping[BlockKey, Tensor],
) -> None:
    """Let the kept input most like each lost one stand in for it, in place, scaled to fit it best.

    `inputs` are as for `refit_outputs`: of x_lost, x_kept explains E[x_lost x_kept]^2 / E[x_kept^2]
    of the energy. Columns about to be cut become zero.

    Raises:
        InvalidPlan: `plan` does not follow from `previous`; nothing has been changed then.
    """
    for key, weight_OI, kept_K, _ in _losing_inputs(model, plan, previous):
        lost_L = _others(kept_K, weight_OI.shape[1])
        factors_L, nearest_L = _nearest(inputs[key].to(weight_OI.device), lost_L, kept_K)
        weight_OI.index_add_(1, nearest_L, weight_OI[:, lost_L] * factors_L.to(weight_OI.dtype))
        weight_OI[:, lost_L] = 0


def _losing_inputs(
    model: PreTrainedModel, plan: PruningPlan, previous: PruningPlan
) -> list[tuple[BlockKey, nn.Parameter, Tensor, Tensor | None]]:
    """Output projections that the cut takes inputs from: weight [O, I], kept inputs, bias [O]."""
    kept = kept_inputs(model, plan, previous=previous)
    return [
        (key, tensor.parameter, kept[tensor.parameter], getattr(tensor.module, "bias", None))
        for key, tensor in output_projections(model).items()
        if tensor.parameter in kept
    ]


def _leave_only(weight_OI: Tensor, kept_K: Tensor, columns_OK: Tensor) -> None:
    weight_OI.zero_()
    weight_OI[:, kept_K] = columns_OK


def _add(bias_O: Tensor | None, constant_O: Tensor) -> None:
    assert bias_O is not None, "models without biases are refused at the start"
    bias_O.add_(constant_O.to(bias_O.dtype))


def _input_mean(scores: Scores, key: BlockKey, weight_OI: Tensor) -> Tensor:
    layer, axis = key
    return scores.layers[layer].input_means[axis].to(weight_OI.device, torch.float64, copy=True)


def _nearest(inputs_II: Tensor, lost_L: Tensor, kept_K: Tensor) -> tuple[Tensor, Tensor]:
    """Of each lost input, the kept one that explains most of it, and its factor."""
    moments_LK = inputs_II.double()[lost_L][:, kept_K]
    energies_K = inputs_II.double().diagonal()[kept_K].clamp_min(torch.finfo(torch.float32).tiny)
    best_L = (moments_LK.square() / energies_K).argmax(dim=1)
    factors_L = moments_LK.gather(1, best_L[:, None]).squeeze(1) / energies_K[best_L]
    return factors_L, kept_K[best_L]


def _others(kept_K: Tensor, width: int) -> Tensor:
    lost_I = torch.ones(width, dtype=torch.bool, device=kept_K.device)
    lost_I[kept_K] = False
    return lost_I.nonzero().flatten()
