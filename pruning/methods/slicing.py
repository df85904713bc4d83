"""SliceGPT's cut (arXiv 2401.15024): the residual stream is turned first, then loses channels."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from pruning.importance.energy import principal_components
from pruning.methods.run import Run
from pruning.models.block_rotation import slice_blocks
from pruning.models.geometry import count_parameters, geometry_of
from pruning.models.rotation import free_stream, rotate_stream
from pruning.plan import PruningPlan
from pruning.scores import NOTHING, Scores


def stream_scores(run: Run, batches: Sequence[Tensor]) -> Scores:
    """Energies of the hidden channels, the model turned to its principal components for that.

    A model that loses nothing is left as it is. Where each block is turned by itself, that waits
    for the width: here channels only stand in order.
    """
    layers, width = (NOTHING,) * len(run.plan.living), run.model.config.hidden_size
    if count_parameters(run.model) <= run.target_num_parameters:
        return Scores(layers, hidden=torch.ones(width))
    free_stream(run.model)
    energies_D = torch.arange(width, 0, -1)
    if not _by_block(run):
        energies_D, directions_DD = principal_components(run.model, batches)
        rotate_stream(run.model, directions_DD)
    _adopt(run.loop.optimizer, run.model)
    shortcuts = 2 * len(run.plan.living) if _by_block(run) else 0
    run.geometry = replace(geometry_of(run.model, run.plan), shortcuts=shortcuts)
    return Scores(layers, hidden=energies_D.float().cpu())


def turn_blocks(run: Run, plan: PruningPlan, batches: Sequence[Tensor]) -> None:
    """Slice the model to the hidden size of `plan`, if its recipe turns each block by itself."""
    if not _by_block(run) or plan.hidden is None:
        return
    slice_blocks(run.model, batches, len(plan.hidden))
    _adopt(run.loop.optimizer, run.model)
    run.geometry = geometry_of(run.model, run.plan)


def _by_block(run: Run) -> bool:
    importance = run.recipe.importance
    return (importance.kind, importance.rotation) == ("pca_energy", "per_block")


def _adopt(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Train the parameters that the model has now; moments along the old directions are gone."""
    optimizer.state.clear()
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    for group, parameters in zip(optimizer.param_groups, (matrices, vectors), strict=False):
        group["params"] = parameters
