"""Second moments of what enters and leaves the output projections, over calibration text.

Shapes: B sequences, T tokens, N = B * T, I inputs, O outputs of a projection.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from pruning.errors import InvalidData
from pruning.models.freezing import frozen
from pruning.models.loss import Precision, autocast, training_loss
from pruning.models.projections import BlockKey, output_projections

_PANELS = 4
"""Column panels of a symmetric product; those left of the diagonal are copied, not computed."""


@dataclass(frozen=True)
class Moments:
    """Per-token means by block, fp32.

    `inputs` is H = E[x x^T] over the inputs of the block's output projection, `gradients` is
    G = E[g g^T] over the gradients of the summed loss with respect to its outputs.
    """

    inputs: Mapping[BlockKey, Tensor]
    gradients: Mapping[BlockKey, Tensor]


def measure_moments(
    model: PreTrainedModel,
    batches: Sequence[Tensor],
    *,
    precision: Precision,
    gradients: bool,
) -> Moments:
    """One pass over token ids [B, T] on the model's device; weights, flags and mode stay.

    Raises:
        InvalidData: there is no batch.
    """
    if not batches:
        raise InvalidData("no calibration text", param="data")
    sums = {key: _Sums(tensor.module) for key, tensor in output_projections(model).items()}
    with frozen(model), ExitStack() as stack:
        for handle in (s.watch() for s in sums.values()):
            stack.callback(handle.remove)
        for ids_BT in batches:
            _pass(model, ids_BT, precision, backward=gradients)
    return Moments(
        inputs={key: s.inputs.mean() for key, s in sums.items()},
        gradients={key: s.gradients.mean() for key, s in sums.items()} if gradients else {},
    )


def _pass(model: PreTrainedModel, ids_BT: Tensor, precision: Precision, *, backward: bool) -> None:
    if not backward:
        with torch.no_grad(), autocast(ids_BT.device, precision):
            model.base_model(input_ids=ids_BT, use_cache=False)
        return
    with torch.enable_grad(), _differentiable_embeddings(model):
        loss = training_loss(model, ids_BT, precision)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own


@dataclass
class _Mean:
    """A running mean of x x^T over tokens."""

    num_tokens: int = 0
    total: Tensor | None = None

    def add(self, rows_NI: Tensor) -> None:
        product_II = _gram(rows_NI)
        self.total = product_II if self.total is None else self.total.add_(product_II)
        self.num_tokens += len(rows_NI)

    def mean(self) -> Tensor:
        assert self.total is not None
        return self.total / self.num_tokens


@dataclass
class _Sums:
    """The two moments of one projection while they are gathered."""

    module: nn.Module
    inputs: _Mean = field(default_factory=_Mean)
    gradients: _Mean = field(default_factory=_Mean)

    def watch(self) -> RemovableHandle:
        return self.module.register_forward_hook(self._after_forward)

    def _after_forward(
        self, _module: nn.Module, args: tuple[Tensor, ...], output_BTO: Tensor
    ) -> None:
        self.inputs.add(args[0].detach().flatten(0, -2))
        if output_BTO.requires_grad:
            output_BTO.register_hook(  # type: ignore[no-untyped-call]  # torch's own
                lambda grad_BTO: self.gradients.add(grad_BTO.detach().flatten(0, -2))
            )


@torch.no_grad()
def _gram(rows_NI: Tensor) -> Tensor:
    """x^T x [I, I] in fp32.

    Never in autocast: rounding the products to bf16 makes H indefinite.
    """
    width = rows_NI.shape[1]
    bounds = [width * i // _PANELS for i in range(_PANELS + 1)]
    product_II = torch.empty(width, width, device=rows_NI.device)
    with torch.autocast(rows_NI.device.type, enabled=False), _exact_products(rows_NI):
        rows = rows_NI.float()
        for start, end in pairwise(bounds):
            torch.mm(rows[:, start:end].T, rows[:, start:], out=product_II[start:end, start:])
            product_II[start:, start:end] = product_II[start:end, start:].T
    return product_II


@contextmanager
def _exact_products(rows_NI: Tensor) -> Iterator[None]:
    """Let CPU products of bf16 values run on bf16 units: the products are exact, the sums fp32."""
    if rows_NI.dtype != torch.bfloat16 or rows_NI.device.type != "cpu":
        yield
        return
    settings = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before


@contextmanager
def _differentiable_embeddings(model: PreTrainedModel) -> Iterator[None]:
    """Start the graph at the embeddings' output, since no weight starts it."""

    def require(_module: nn.Module, _args: object, output_BTD: Tensor) -> None:
        output_BTD.requires_grad_(True)

    handle = model.get_input_embeddings().register_forward_hook(require)
    try:
        yield
    finally:
        handle.remove()
