"""One calibration pass that scores every group and every block of a model."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from pruning.errors import InvalidData
from pruning.importance.activations import (
    ChannelMoments,
    activation_importance,
    fluctuation_importance,
    wanda_importance,
)
from pruning.importance.fusion import fused_importance
from pruning.importance.magnitude import magnitude_importance
from pruning.importance.similarity import StreamTurns
from pruning.importance.stream import StreamMeasurement
from pruning.importance.taylor import taylor_importance
from pruning.models.adapter import Adapter, GroupedTensor, adapter_for
from pruning.models.attention import blockwise_attention
from pruning.models.families import Span
from pruning.models.loss import training_loss
from pruning.recipe_parts.method import Axis, Importance, ImportanceKind
from pruning.scores import LayerScores, Scores


def measure_importance(
    model: PreTrainedModel,
    batches: Iterable[torch.Tensor],
    importance: Importance,
    *,
    input_means: bool = False,
    hidden: bool = False,
) -> Scores:
    """Score the groups of `model` as it stands, and its `hidden` channels where asked to.

    `batches` are token ids [B, T] on its device.

    Gradients live one parameter at a time: each is folded into its groups' scores and freed as soon
    as the backward pass has made it. Weights, flags and mode are left as found; `.grad` is cleared.
    Run under `torch.autocast` to calibrate in bfloat16; scores are fp32 throughout.

    Raises:
        InvalidData: there is no batch.
    """
    adapter = adapter_for(model.config)
    batches = list(batches)
    if not batches:
        raise InvalidData("no calibration text", param="data")
    layers = [_LayerMeasurement(adapter, layer, importance) for layer in adapter.layers(model)]
    stream = StreamMeasurement(model, importance) if hidden else None
    watches = [layer.turns.watch() for layer in layers]
    watches += [stream.watch_activations()] if stream is not None else []
    if importance.kind in _ACTIVATION_KINDS or input_means:
        watches += [layer.watch_activations() for layer in layers]
    with _evaluation_mode(model), _hooked(*watches):
        if importance.kind in _GRADIENT_KINDS:
            _backward_passes(model, batches, layers, stream)
        else:
            _forward_passes(model, batches)
    seed = int(batches[0].sum())
    _score_without_gradients(layers, importance, seed=seed)
    if importance.kind == "fused":
        _fuse(layers)
    return Scores(
        tuple(layer.scores(len(batches)) for layer in layers),
        hidden=None if stream is None else stream.scores(seed=seed),
    )


_GRADIENT_KINDS: tuple[ImportanceKind, ...] = ("taylor", "fused")
_ACTIVATION_KINDS: tuple[ImportanceKind, ...] = ("fluctuation", "wanda", "activation")


def _score_without_gradients(
    layers: list["_LayerMeasurement"], importance: Importance, *, seed: int
) -> None:
    """Fill in the scores that the passes over the text did not."""
    # Seeded by the text, so that each increment draws anew and a resumed one draws the same.
    generator = torch.Generator().manual_seed(seed)
    for layer in layers:
        if importance.kind == "magnitude":
            layer.score_magnitude()
        elif importance.kind == "random":
            layer.score_randomly(generator)
        elif importance.kind in _ACTIVATION_KINDS:
            layer.score_activations()


def _fuse(layers: list["_LayerMeasurement"]) -> None:
    """Put two measurements of each group together, each in units of its mean over all layers."""
    spans = {span for layer in layers for span in layer.sums}
    for span in sorted(spans):
        found = [layer for layer in layers if span in layer.sums]
        fused = fused_importance(
            torch.cat([layer.by_vector[span] for layer in found]),
            torch.cat([layer.sums[span] for layer in found]),
        )
        parts = torch.split(fused, [len(layer.sums[span]) for layer in found])
        for layer, part in zip(found, parts, strict=True):
            layer.sums[span] = part


_BLOCKS: dict[Axis, Span] = {"intermediate": "channel", "kv_group": "query_head"}
"""What the input channels of each block's output projection are."""


class _LayerMeasurement:
    """Running sums of one decoder layer over a calibration pass."""

    def __init__(self, adapter: Adapter, layer: nn.Module, importance: Importance) -> None:
        self.importance = importance
        self.turns = StreamTurns(adapter, layer)
        self.tensors = adapter.by_span(layer)
        self.sums: dict[Span, torch.Tensor] = {
            span: torch.zeros(tensors[0].num_groups, device=tensors[0].parameter.device)
            for span, tensors in self.tensors.items()
            if tensors
        }
        self.by_vector = {span: sums.clone() for span, sums in self.sums.items()}
        self.deviations: dict[Axis, float] = {}
        self.moments: dict[Span, ChannelMoments] = {
            "channel": ChannelMoments(),
            "query_head": ChannelMoments(),
        }

    def parameters(self) -> Iterator[nn.Parameter]:
        for tensors in self.tensors.values():
            yield from (tensor.parameter for tensor in tensors)

    def watch_gradients(self) -> list[RemovableHandle]:
        """Fold each gradient into its groups' scores as soon as it is complete, then free it."""
        folded: dict[nn.Parameter, list[tuple[Span, GroupedTensor]]] = {}
        for span, tensors in self.tensors.items():
            for tensor in tensors:
                folded.setdefault(tensor.parameter, []).append((span, tensor))
        return [
            # Torch leaves this one method untyped.
            parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                self._folder(parts)
            )
            for parameter, parts in folded.items()
        ]

    def watch_activations(self) -> list[RemovableHandle]:
        """Gather moments of what enters each block's output projection."""
        return [
            self._output_projection(span).module.register_forward_pre_hook(_adder(moments))
            for span, moments in self.moments.items()
        ]

    def score_activations(self) -> None:
        """Score the input channels of the output projections, and sum them over heads."""
        for span, moments in self.moments.items():
            tensor = self._output_projection(span)
            if tensor.num_groups == 0:
                continue
            channels_C = self._channel_importance(span, moments, tensor.parameter.detach())
            deviation = channels_C.std(correction=0).item()
            self.sums[span] = channels_C.view(-1, tensor.repeats).sum(dim=1)
            if span == "channel":
                self.deviations["intermediate"] = deviation
                continue
            heads_per_group = tensor.num_groups // len(self.sums["key_value_head"])
            self.deviations["query_head"] = deviation * tensor.repeats
            self.deviations["kv_group"] = deviation * tensor.repeats * heads_per_group

    def _channel_importance(
        self, span: Span, moments: ChannelMoments, weight_OC: torch.Tensor
    ) -> torch.Tensor:
        if self.importance.kind == "fluctuation":
            channels_C = fluctuation_importance(moments.variance(), weight_OC)
            # As FLAP's code has it and its paper does not: channels of attention stand out more, so
            # that fewer of its heads rank among the least.
            return channels_C.square() if span == "query_head" else channels_C
        if self.importance.kind == "wanda":
            return wanda_importance(moments.norm(), weight_OC)
        return activation_importance(moments.sequences)

    def _output_projection(self, span: Span) -> GroupedTensor:
        return next(tensor for tensor in self.tensors[span] if tensor.side == "inputs")

    def score_randomly(self, generator: torch.Generator) -> None:
        for span, sums in self.sums.items():
            self.sums[span] = torch.rand(len(sums), generator=generator)

    def score_magnitude(self) -> None:
        for span, tensors in self.tensors.items():
            for tensor in tensors:
                entries = magnitude_importance(tensor.parameter.detach())
                self.sums[span] += tensor.sum_by_group(entries)

    def scores(self, num_batches: int) -> LayerScores:
        key_value_K, query_N = self.sums["key_value_head"], self.sums["query_head"]
        num_groups = len(key_value_K)
        query_KR = query_N.view(num_groups, len(query_N) // max(1, num_groups))
        return LayerScores(
            intermediate=self.sums["channel"].cpu(),
            experts=self.sums.get("expert", torch.empty(0)).cpu(),
            kv_groups=(key_value_K + query_KR.sum(dim=1)).cpu(),
            query_heads=query_KR.cpu(),
            attention_importance=self.turns.attention.item() / num_batches,
            mlp_importance=self.turns.mlp.item() / num_batches,
            layer_importance=self.turns.layer.item() / num_batches,
            input_means={
                axis: self.moments[span].mean
                for axis, span in _BLOCKS.items()
                if self.moments[span].num_tokens
            },
            deviations=self.deviations,
        )

    def _folder(self, parts: list[tuple[Span, GroupedTensor]]) -> Callable[[torch.Tensor], None]:
        """Of one parameter, which a fused projection shares among several tensors."""

        def fold(parameter: torch.Tensor) -> None:
            assert parameter.grad is not None
            weight, fused = parameter.detach(), self.importance.kind == "fused"
            order = "mix" if fused else self.importance.taylor_order
            entries = taylor_importance(weight, parameter.grad, order)
            for span, tensor in parts:
                self.sums[span] += tensor.sum_by_group(entries)
                if fused:
                    change = weight.float() * parameter.grad.float()
                    self.by_vector[span] += tensor.sum_by_group(change).abs()
            parameter.grad = None

        return fold


def _adder(moments: ChannelMoments) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
    def add(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        moments.add(args[0])

    return add


def _backward_passes(
    model: PreTrainedModel,
    batches: list[torch.Tensor],
    layers: list[_LayerMeasurement],
    stream: StreamMeasurement | None,
) -> None:
    in_layers = {parameter for layer in layers for parameter in layer.parameters()}
    # Before the layers' own, which free each gradient.
    handles = [stream.watch_gradients(kept=in_layers)] if stream is not None else []
    wanted = in_layers if stream is None else in_layers | set(stream.parameters())
    handles += [layer.watch_gradients() for layer in layers]
    in_bf16 = torch.is_autocast_enabled(batches[0].device.type)
    with _gradients_of(model, wanted), _hooked(*handles), blockwise_attention(model):
        for ids_BT in batches:
            loss = training_loss(model, ids_BT, "bfloat16" if in_bf16 else "float32")
            num_predictions = ids_BT[:, 1:].numel()
            (loss / num_predictions).backward()  # type: ignore[no-untyped-call]  # torch's own


@torch.no_grad()
def _forward_passes(model: PreTrainedModel, batches: list[torch.Tensor]) -> None:
    for ids_BT in batches:
        model.base_model(input_ids=ids_BT, use_cache=False)


@contextmanager
def _gradients_of(model: PreTrainedModel, wanted: Iterable[nn.Parameter]) -> Iterator[None]:
    """Let only wanted parameters want gradients, and give every flag back afterwards."""
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    model.zero_grad(set_to_none=True)
    model.requires_grad_(False)
    for parameter in wanted:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)


@contextmanager
def _hooked(*handles: list[RemovableHandle]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in (handle for some in handles for handle in some):
            handle.remove()


@contextmanager
def _evaluation_mode(model: PreTrainedModel) -> Iterator[None]:
    """Dropout off, and gradient checkpointing with it: a hook must see each tensor once."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
