"""What each training step shows of every group's worth: Taylor importance that costs no pass.

EfficientLLM (arXiv 2502.06663): saliency accumulates over the steps between two cuts.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pruning.importance.taylor import taylor_importance
from pruning.models.adapter import Adapter, GroupedTensor, adapter_for
from pruning.models.families import Span
from pruning.models.hidden import outer_stream_tensors, stream_tensors
from pruning.recipe_parts.method import TaylorOrder
from pruning.scores import LayerScores, Scores


class TrainingSaliency:
    """Running sums over the optimizer steps that are watched; good until the model is cut.

    Those of `hidden` channels too, where asked for.
    """

    def __init__(self, model: PreTrainedModel, order: TaylorOrder, *, hidden: bool = False) -> None:
        adapter = adapter_for(model.config)
        self._stream = _stream_tensors(adapter, model) if hidden else {}
        self._hidden_D: Tensor | None = None
        self._order = order
        self._tensors = [adapter.by_span(layer) for layer in adapter.layers(model)]
        self._sums: list[dict[Span, Tensor]] = [
            {
                span: torch.zeros(tensors[0].num_groups, device=tensors[0].parameter.device)
                for span, tensors in spans.items()
                if tensors
            }
            for spans in self._tensors
        ]

    @contextmanager
    def watching(self, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """Look at the gradients of each step of `optimizer` just before it is taken."""
        handle = optimizer.register_step_pre_hook(lambda *_: self._add())
        try:
            yield
        finally:
            handle.remove()

    def scores(self) -> Scores:
        """Of all steps so far."""
        hidden_D = None if self._hidden_D is None else self._hidden_D.cpu()
        return Scores(tuple(_layer_scores(sums) for sums in self._sums), hidden=hidden_D)

    @torch.no_grad()
    def _add(self) -> None:
        entries: dict[nn.Parameter, Tensor] = {}
        for spans, sums in zip(self._tensors, self._sums, strict=True):
            for span, total in sums.items():
                for tensor in spans[span]:
                    parameter = tensor.parameter
                    if parameter.grad is None:
                        continue
                    if parameter not in entries:
                        entries[parameter] = taylor_importance(
                            parameter, parameter.grad, self._order
                        )
                    total += tensor.sum_by_group(entries[parameter])
            entries.clear()
        for parameter, tensor in self._stream.items():
            if parameter.grad is not None:
                change = taylor_importance(parameter, parameter.grad, self._order)
                sums_D = tensor.sum_by_group(change)
                self._hidden_D = sums_D if self._hidden_D is None else self._hidden_D + sums_D


def _stream_tensors(adapter: Adapter, model: PreTrainedModel) -> dict[nn.Parameter, GroupedTensor]:
    """Every parameter with a dimension of hidden channels, once; tied ones have one gradient."""
    tensors = outer_stream_tensors(adapter, model)
    for layer in adapter.layers(model):
        tensors += stream_tensors(adapter, layer)
    return {tensor.parameter: tensor for tensor in tensors}


def _layer_scores(sums: dict[Span, Tensor]) -> LayerScores:
    key_value_K, query_N = sums["key_value_head"], sums["query_head"]
    query_KR = query_N.view(len(key_value_K), len(query_N) // max(1, len(key_value_K)))
    groups_K, channels_F = key_value_K + query_KR.sum(dim=1), sums["channel"]
    attention, mlp = groups_K.sum().item(), channels_F.sum().item()
    return LayerScores(
        intermediate=channels_F.cpu(),
        experts=sums.get("expert", torch.empty(0)).cpu(),
        kv_groups=groups_K.cpu(),
        query_heads=query_KR.cpu(),
        attention_importance=attention,
        mlp_importance=mlp,
        layer_importance=attention + mlp,
    )
