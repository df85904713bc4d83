"""Second moments of what enters and leaves the output projections, over calibration text.

Shapes: B sequences, T tokens, N = B * T, I inputs, O outputs of a projection.
"""

from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from pruning.errors import InvalidData
from pruning.models.adapter import GroupedTensor
from pruning.models.attention import blockwise_attention
from pruning.models.freezing import frozen
from pruning.models.loss import Precision, autocast
from pruning.models.projections import BlockKey, output_projections
from pruning.models.recomputing import recomputed_loss

_PANELS = 8
"""Of rows of a symmetric product; what is left of the diagonal is copied, not computed."""


@dataclass(frozen=True)
class Moments:
    """Per-token means by block, fp32.

    `inputs` is H = E[x x^T] over the inputs of the block's output projection, `gradients` is
    G = E[g g^T] over the gradients of the summed loss with respect to its outputs. Each is made
    whole when it is read: read it once, and only one block's is there at a time.
    """

    inputs: MutableMapping[BlockKey, Tensor]
    gradients: MutableMapping[BlockKey, Tensor]


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
    # Made before anything that comes and goes, between which they would leave holes.
    sums = {key: _Sums.of(tensor) for key, tensor in output_projections(model).items()}
    with frozen(model), blockwise_attention(model):
        for ids_BT in batches:
            _pass(model, ids_BT, precision, sums.values(), backward=gradients)
    return Moments(
        inputs=_Means({key: s.inputs for key, s in sums.items()}),
        gradients=_Means({key: s.gradients for key, s in sums.items()} if gradients else {}),
    )


@contextmanager
def gathering_inputs(model: PreTrainedModel) -> Iterator[Moments]:
    """H of every block over the passes that run inside, whatever else those measure; no G."""
    sums = {key: _Sums.of(tensor) for key, tensor in output_projections(model).items()}
    with ExitStack() as stack:
        for handle in (s.watch_inputs() for s in sums.values()):
            stack.callback(handle.remove)
        yield Moments(inputs=_Means({key: s.inputs for key, s in sums.items()}), gradients={})


def _pass(
    model: PreTrainedModel,
    ids_BT: Tensor,
    precision: Precision,
    sums: Iterable["_Sums"],
    *,
    backward: bool,
) -> None:
    with ExitStack() as stack:
        for handle in (s.watch() for s in sums):
            stack.callback(handle.remove)
        if not backward:
            with torch.no_grad(), autocast(ids_BT.device, precision):
                model.base_model(input_ids=ids_BT, use_cache=False)
            return
        with torch.enable_grad(), _differentiable_embeddings(model):
            loss = recomputed_loss(model, ids_BT, precision)
    # Without the hooks: layers run once more on the way, and inputs count once.
    loss.backward()  # type: ignore[no-untyped-call]  # torch's own


@dataclass
class _Mean:
    """A running mean of x x^T [I, I] over tokens, fp32.

    It is symmetric: panels of rows are kept from the diagonal on, 9/16 of the whole.
    """

    panels: list[Tensor] = field(default_factory=list)
    num_tokens: int = 0

    @classmethod
    def empty(cls, width: int, device: torch.device) -> "_Mean":
        """Of no token yet, its memory taken."""
        bounds = _bounds(width)
        shapes = [(end - start, width - start) for start, end in pairwise(bounds)]
        return cls([torch.zeros(shape, device=device) for shape in shapes])

    @classmethod
    def of(cls, mean_II: Tensor) -> "_Mean":
        """The mean itself, as of one token."""
        bounds = pairwise(_bounds(len(mean_II)))
        return cls([mean_II[start:end, start:].clone() for start, end in bounds], num_tokens=1)

    @torch.no_grad()
    def add(self, rows_NI: Tensor) -> None:
        """Never in autocast: rounding the products to bf16 makes H indefinite."""
        if not self.panels:
            self.panels = self.empty(rows_NI.shape[1], rows_NI.device).panels
        bounds = pairwise(_bounds(rows_NI.shape[1]))
        with torch.autocast(rows_NI.device.type, enabled=False), _exact_products(rows_NI):
            rows = rows_NI.float()
            for panel, (start, end) in zip(self.panels, bounds, strict=True):
                panel.addmm_(rows[:, start:end].T, rows[:, start:])
        self.num_tokens += len(rows_NI)

    def whole(self) -> Tensor:
        bounds = _bounds(self.panels[0].shape[1])
        mean_II = self.panels[0].new_empty(bounds[-1], bounds[-1])
        for panel, (start, end) in zip(self.panels, pairwise(bounds), strict=True):
            torch.div(panel, self.num_tokens, out=mean_II[start:end, start:])
            mean_II[start:, start:end] = mean_II[start:end, start:].T
        return mean_II


def _bounds(width: int) -> list[int]:
    return [width * i // _PANELS for i in range(_PANELS + 1)]


class _Means(MutableMapping[BlockKey, Tensor]):
    """Makes each mean whole when it is read."""

    def __init__(self, means: dict[BlockKey, _Mean]) -> None:
        self._means = means

    def __getitem__(self, key: BlockKey) -> Tensor:
        return self._means[key].whole()

    def __setitem__(self, key: BlockKey, mean_II: Tensor) -> None:
        self._means[key] = _Mean.of(mean_II)

    def __delitem__(self, key: BlockKey) -> None:
        del self._means[key]

    def __iter__(self) -> Iterator[BlockKey]:
        return iter(self._means)

    def __len__(self) -> int:
        return len(self._means)


@dataclass
class _Sums:
    """The two moments of one projection while they are gathered."""

    module: nn.Module
    inputs: _Mean
    gradients: _Mean

    @classmethod
    def of(cls, projection: GroupedTensor) -> "_Sums":
        """Nothing yet; of a linear projection it is known how large they will be."""
        module, device = projection.module, projection.parameter.device
        if not isinstance(module, nn.Linear):
            return cls(module, _Mean(), _Mean())
        inputs = _Mean.empty(module.in_features, device)
        return cls(module, inputs, _Mean.empty(module.out_features, device))

    def watch(self) -> RemovableHandle:
        return self.module.register_forward_hook(self._after_forward)

    def watch_inputs(self) -> RemovableHandle:
        return self.module.register_forward_pre_hook(self._add_inputs)

    def _add_inputs(self, _module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.inputs.add(args[0].detach().flatten(0, -2))

    def _after_forward(
        self, module: nn.Module, args: tuple[Tensor, ...], output_BTO: Tensor
    ) -> None:
        self._add_inputs(module, args)
        if output_BTO.requires_grad:
            output_BTO.register_hook(  # type: ignore[no-untyped-call]  # torch's own
                lambda grad_BTO: self.gradients.add(grad_BTO.detach().flatten(0, -2))
            )


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
