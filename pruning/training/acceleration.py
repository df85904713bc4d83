"""What makes a training step faster or smaller without changing what it computes."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
import torch._dynamo
from torch import nn
from transformers import PreTrainedModel

from pruning.events import Emit, RunWarning
from pruning.models.adapter import adapter_for
from pruning.models.attention import blockwise_attention
from pruning.models.lean import lean_layers
from pruning.recipe_parts.recovery import Recovery

_COMPILERS = {"cpu": ("c++", "g++", "clang++"), "cuda": ("cc", "gcc", "clang")}
_RECOMPILE_LIMIT = 256
"""Layers of equal shape share one compilation; a pruned model has as many shapes as layers."""


@contextmanager
def accelerated(model: PreTrainedModel, recovery: Recovery, emit: Emit) -> Iterator[None]:
    """Train inside with the recipe's options; outside, hooks and cuts find an ordinary model."""
    with ExitStack() as stack:
        # Around the backward pass too: what is recomputed there has to be what was computed.
        stack.enter_context(blockwise_attention(model))
        if recovery.activation_checkpointing:
            stack.enter_context(_checkpointed(model))
        # A compiler decides by itself what to keep.
        compiles = recovery.compile and _finds_compiler(model, emit)
        stack.enter_context(_compiled(model) if compiles else lean_layers(model))
        yield


@contextmanager
def _checkpointed(model: PreTrainedModel) -> Iterator[None]:
    """Keep of each layer only its input, and run it once more on the way back."""
    model.activation_checkpointing_enable({"use_reentrant": False})
    try:
        yield
    finally:
        model.activation_checkpointing_disable()


def _finds_compiler(model: PreTrainedModel, emit: Emit) -> bool:
    """Whether this machine can compile for the model's device; a warning says where it cannot."""
    device = next(model.parameters()).device.type
    found = any(shutil.which(name) for name in _COMPILERS.get(device, ()))
    if not found:
        message = "this machine has no C compiler: training goes on without compilation"
        emit(RunWarning(code="not_compiled", message=message))
    return found


@contextmanager
def _compiled(model: PreTrainedModel) -> Iterator[None]:
    """Compile layer by layer; compilations live on, so only new shapes are compiled again."""
    layers: list[nn.Module] = adapter_for(model.config).layers(model)
    for layer in layers:
        layer.compile(dynamic=False)
    try:
        # A layer that the compiler cannot take runs as it is.
        with torch._dynamo.config.patch(recompile_limit=_RECOMPILE_LIMIT, suppress_errors=True):
            yield
    finally:
        for layer in layers:
            layer._compiled_call_impl = None
