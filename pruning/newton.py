"""What a cut leaves to gain at once: one damped Newton step of the output projections.

Optimal brain surgery drops the first-order term of the loss, which is nothing at a minimum. A model
that was just cut is not at one. K-FAC (Martens & Grosse 2015, arXiv 1503.05671) gives the step that
the second-order model asks for in closed form, dW = -G^-1 C H^-1, where C = E[g x^T] is the
gradient. C is measured on few tokens, so the curvatures are damped by as much as their own
diagonals, and how far to go along the step is tried on text that C has not seen.

Shapes: B sequences, T tokens, O outputs and I inputs of a projection, K inputs that a cut keeps.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pruning.brain_surgeon import damped
from pruning.errors import InvalidData
from pruning.importance.moments import Moments
from pruning.memory import give_back_memory
from pruning.models.attention import blockwise_attention
from pruning.models.freezing import frozen
from pruning.models.loss import Precision, token_losses
from pruning.models.projections import BlockKey, output_projections
from pruning.models.recomputing import recomputed_loss
from pruning.plan import PruningPlan
from pruning.surgery import kept_inputs

_DAMPING = 1.0
"""Of each diagonal entry of H and of G."""
_SHORTEST = 2.0**-10
_TRIAL_SHARE = 16
"""One batch in so many is for trying how far to go."""


@dataclass(frozen=True, kw_only=True)
class StepTaken:
    """How far the weights went along the step, and the loss of the trial text, nats per token."""

    length: float
    loss_before: float
    loss_after: float


def thin_moments(
    model: PreTrainedModel, moments: Moments, plan: PruningPlan, *, previous: PruningPlan
) -> None:
    """Leave in place, of the model's moments at `previous`, those of the inputs that `plan` keeps.

    Raises:
        InvalidPlan: `plan` does not follow from `previous`.
    """
    kept = kept_inputs(model, plan, previous=previous)
    for key, tensor in output_projections(model).items():
        if tensor.parameter in kept:
            kept_K = kept[tensor.parameter]
            moments.inputs[key] = moments.inputs[key][kept_K][:, kept_K]


def take_newton_step(
    model: PreTrainedModel,
    batches: Sequence[Tensor],
    moments: Moments,
    *,
    precision: Precision,
) -> StepTaken:
    """Step along dW while the loss falls, doubling the length; the rest of the model stays.

    `batches` are token ids [B, T] on the model's device; the last of them are what lengths are
    tried on. A step that does not help is not taken. `moments` are used up, to make room.

    Raises:
        InvalidData: there are not two batches, one to measure and one to try.
    """
    if len(batches) < 2:
        raise InvalidData(
            "one batch of calibration text cannot both give a step and try it",
            param="importance.calibration.num_samples",
            hint="More samples, or a smaller importance.calibration.batch_size.",
        )
    num_trials = -(-len(batches) // _TRIAL_SHARE)
    trials = batches[-num_trials:]
    weights = {key: tensor.parameter for key, tensor in output_projections(model).items()}
    with frozen(model):
        gradients = _mean_gradients(model, weights, batches[:-num_trials], precision)
        # Each gradient makes room for its step.
        steps = {key: _step(gradients.pop(key), moments, key) for key in weights}
        return _walk(model, weights, steps, trials, precision)


def _mean_gradients(
    model: PreTrainedModel,
    weights: Mapping[BlockKey, nn.Parameter],
    batches: Sequence[Tensor],
    precision: Precision,
) -> dict[BlockKey, Tensor]:
    """C [O, I] of each projection, the loss being the sum over a sequence's tokens."""
    with _wanting_gradients(weights.values()), blockwise_attention(model):
        for ids_BT in batches:
            loss = recomputed_loss(model, ids_BT, precision)
            loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        num_tokens = sum(ids_BT.numel() for ids_BT in batches)
        found = {}
        for key, weight in weights.items():
            assert weight.grad is not None
            found[key] = weight.grad.div_(num_tokens)
    return found


@torch.no_grad()
def _step(gradient_OI: Tensor, moments: Moments, key: BlockKey) -> Tensor:
    """-(G + damping)^-1 C (H + damping)^-1, solved in fp64."""
    inputs_II = damped(moments.inputs.pop(key), _DAMPING)
    outputs_OO = damped(moments.gradients.pop(key), _DAMPING)
    half_OI = torch.linalg.solve(outputs_OO, gradient_OI.double())
    step_OI: Tensor = -torch.linalg.solve(inputs_II, half_OI, left=False)
    step_OI = step_OI.to(gradient_OI.dtype)
    # The fp64 matrices of a block leave holes that those of the next do not fit.
    del inputs_II, outputs_OO, half_OI
    give_back_memory(gradient_OI.device)
    return step_OI


@torch.no_grad()
def _walk(
    model: PreTrainedModel,
    weights: Mapping[BlockKey, nn.Parameter],
    steps: Mapping[BlockKey, Tensor],
    trials: Sequence[Tensor],
    precision: Precision,
) -> StepTaken:
    starts = {key: weight.clone() for key, weight in weights.items()}

    def go(length: float) -> None:
        for key, weight in weights.items():
            torch.add(starts[key], steps[key], alpha=length, out=weight.data)

    before = best = _loss(model, trials, precision)
    reached = 0.0
    for doubling in count():
        length = _SHORTEST * 2**doubling
        go(length)
        # A non-finite loss is no improvement either.
        if not (loss := _loss(model, trials, precision)) < best:
            break
        best, reached = loss, length
    go(reached)
    return StepTaken(length=reached, loss_before=before, loss_after=best)


def _loss(model: PreTrainedModel, batches: Sequence[Tensor], precision: Precision) -> float:
    # One sequence at a time: these weights are held three times over as it is.
    sequences = [ids_1T for ids_BT in batches for ids_1T in torch.split(ids_BT, 1)]
    losses = [float(token_losses(model, ids_1T, precision).sum()) for ids_1T in sequences]
    return sum(losses) / sum(ids_BT.numel() for ids_BT in batches)


@contextmanager
def _wanting_gradients(weights: Collection[nn.Parameter]) -> Iterator[None]:
    """These weights of a frozen model collect gradients, from zero; what they had is given back."""
    before = [weight.grad for weight in weights]
    for weight in weights:
        weight.requires_grad_(True)
        weight.grad = torch.zeros_like(weight)
    try:
        yield
    finally:
        for weight, grad in zip(weights, before, strict=True):
            weight.requires_grad_(False)
            weight.grad = grad
