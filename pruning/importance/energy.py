"""How much of the residual stream lies in each direction: principal components.

SliceGPT (arXiv 2401.15024 §3.4), with one basis for the whole model: the second moments of what all
norms put out are averaged, so that no layer outweighs another by the length of its vectors.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pruning.errors import InvalidData
from pruning.models.adapter import adapter_for
from pruning.models.hidden import stream_norms


@torch.no_grad()
def principal_components(
    model: PreTrainedModel, batches: Iterable[Tensor]
) -> tuple[Tensor, Tensor]:
    """Energies [D], descending, and the orthogonal matrix [D, D] of the directions that have them.

    fp64, which the paper found necessary. `batches` are token ids [B, T] on the model's device; the
    norms have no weights of their own any more (`free_stream`).

    Raises:
        InvalidData: there is no batch.
    """
    total_DD = torch.zeros((), dtype=torch.float64)

    def add(_norm: nn.Module, _args: object, output_BTD: Tensor) -> None:
        nonlocal total_DD
        rows_ND = output_BTD.flatten(0, -2).double()
        total_DD = total_DD.to(rows_ND.device) + rows_ND.T @ rows_ND

    norms = stream_norms(adapter_for(model.config), model)
    handles = [norm.register_forward_hook(add) for norm in norms]
    was_training = model.training
    model.eval()
    try:
        for ids_BT in batches:
            model.base_model(input_ids=ids_BT, use_cache=False)
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    if total_DD.dim() == 0:
        raise InvalidData("no calibration text", param="data")
    energies_D, directions_DD = torch.linalg.eigh(total_DD)
    return energies_D.flip(0), directions_DD.flip(1)
