"""Making good for a cut before it is made: what stays is changed so that the loss is least."""

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pruning.brain_surgeon import refitted
from pruning.models.projections import BlockKey, output_projections
from pruning.plan import PruningPlan
from pruning.surgery import kept_inputs


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
    kept = kept_inputs(model, plan, previous=previous)
    for key, tensor in output_projections(model).items():
        weight_OI = tensor.parameter
        if weight_OI not in kept:
            continue
        kept_K = kept[weight_OI]
        refit_OK = refitted(weight_OI.detach(), inputs[key], kept_K, ridge=ridge)
        weight_OI.zero_()
        weight_OI[:, kept_K] = refit_OK
